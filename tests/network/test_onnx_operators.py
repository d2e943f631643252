"""Every operator at the opsets where its meaning changes, against the reference evaluator and a runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from network.onnx_cases import agrees, model_of

F = np.float32
RNG = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(F)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def one(operator: str, opset: int, shape, *constants, inputs=("x",), outputs=("y",), **attributes):
    """A model of one node; constants follow the inputs, None leaves one out."""
    names, stored = list(inputs), {}
    for i, value in enumerate(constants):
        names.append("" if value is None else f"c{i}")
        if value is not None:
            stored[f"c{i}"] = np.asarray(value)
    shapes = shape if isinstance(shape, dict) else {"x": shape}
    node = helper.make_node(operator, names, list(outputs), name="the_node", **attributes)
    return model_of([node], shapes, stored, outputs, opset)


ENTRYWISE = [
    ("Relu", 7, {}), ("Relu", 14, {}), ("LeakyRelu", 7, {}), ("LeakyRelu", 16, {"alpha": 0.3}), ("Elu", 7, {"alpha": 0.7}),
    ("Elu", 17, {}), ("Celu", 12, {"alpha": 0.4}), ("Selu", 7, {}), ("Selu", 17, {"alpha": 1.5, "gamma": 1.2}),
    ("Sigmoid", 7, {}), ("Tanh", 13, {}), ("Sin", 7, {}), ("Cos", 7, {}), ("Exp", 13, {}), ("Atan", 7, {}), ("Erf", 13, {}),
    ("Abs", 13, {}), ("Softsign", 7, {}), ("Softplus", 7, {}), ("Mish", 18, {}), ("HardSwish", 14, {}),
    ("HardSigmoid", 7, {}), ("HardSigmoid", 17, {"alpha": 0.4, "beta": 0.3}), ("Gelu", 20, {}), ("Gelu", 20, {"approximate": "tanh"}),
    ("ThresholdedRelu", 10, {"alpha": 0.0}), ("ThresholdedRelu", 10, {"alpha": 0.7}), ("Shrink", 9, {"lambd": 0.5, "bias": 0.5}),
    ("Shrink", 9, {"lambd": 0.5}), ("Neg", 13, {}), ("Identity", 13, {}), ("Sign", 13, {}), ("Round", 11, {}), ("Floor", 13, {}),
    ("Ceil", 13, {}), ("Clip", 7, {"min": -0.5, "max": 1.0}), ("Clip", 10, {"min": 0.25}), ("Clip", 6 + 1, {"max": 0.25}),
    ("Clip", 7, {}), ("LpNormalization", 7, {"axis": 1}), ("LpNormalization", 7, {"axis": -1, "p": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "opset", "attributes"), ENTRYWISE)
def test_entrywise(operator, opset, attributes):
    agrees(one(operator, opset, ["batch", 3, 4], **attributes))


@pytest.mark.parametrize(("operator", "opset"), [("Sqrt", 7), ("Log", 13), ("Reciprocal", 13)])
def test_functions_on_positive_numbers(operator, opset):
    agrees(one(operator, opset, ["batch", 3, 4]), low=0.2, high=3.0)


def test_swish_of_opset_24():
    agrees(one("Swish", 24, [1, 5], alpha=1.7), runtime=False)
    agrees(one("Swish", 24, [1, 5], alpha=-0.5), runtime=False)


CLIPS = [(F(-0.5), F(0.5)), (None, F(0.5)), (F(-0.5),), (F(0.0),), (F(0.5), F(-0.5)), ()]


@pytest.mark.parametrize("bounds", CLIPS)
@pytest.mark.parametrize("opset", [11, 13])
def test_clip_with_bounds_as_inputs(bounds, opset):
    # The runtime of an old operator does not define low > high; the schema of opset 13 does: the result is the high end.
    agrees(one("Clip", opset, [1, 6], *bounds), runtime=bounds != CLIPS[4])


def test_clip_of_a_single_end_keeps_the_other_open():
    source = agrees(one("Clip", 13, [1, 6], None, F(0.5)), low=-1e6, high=1e6)
    assert source.graph.nodes[-1].argument["low"] == -np.inf


ARITHMETIC = [
    ("Add", 7),
    ("Sub", 14),
    ("Mul", 13),
    ("Div", 7),
    ("Max", 13),
    ("Min", 12),
    ("Sum", 8),
    ("Mean", 13),
    ("Pow", 7),
]


@pytest.mark.parametrize(("operator", "opset"), ARITHMETIC)
@pytest.mark.parametrize("shape", [(), (4,), (3, 1), (2, 1, 3, 4)])
def test_arithmetic_with_a_constant_on_the_right(operator, opset, shape):
    constant = np.full(shape, 3, dtype=F) if operator == "Pow" else np.abs(normal(*shape)) + F(0.5)
    agrees(one(operator, opset, [1, 3, 4], constant))


@pytest.mark.parametrize(("operator", "opset"), ARITHMETIC)
def test_arithmetic_with_a_constant_on_the_left(operator, opset):
    node = helper.make_node(operator, ["c", "x"], ["y"])
    agrees(model_of([node], {"x": [1, 3, 4]}, {"c": np.abs(normal(3, 1)) + F(0.5)}, opset=opset), low=0.5, high=2.0)


@pytest.mark.parametrize(("operator", "opset"), ARITHMETIC[:-1])
def test_arithmetic_of_two_inputs_that_broadcast(operator, opset):
    node = helper.make_node(operator, ["x", "z"], ["y"])
    agrees(model_of([node], {"x": [1, 3, 4], "z": [1, 3, 1]}, opset=opset), low=0.5, high=2.0)


@pytest.mark.parametrize("operator", ["Max", "Min", "Sum", "Mean"])
def test_many_operands(operator):
    node = helper.make_node(operator, ["x", "c", "z", "d", "w"], ["y"])
    shapes = {"x": [1, 3, 4], "z": [1, 3, 1], "w": [1, 4]}
    agrees(model_of([node], shapes, {"c": normal(4), "d": normal(3, 1)}))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, -1.0, -0.5, -2.0, -3.0])
def test_powers(exponent):
    agrees(one("Pow", 13, [1, 5], F(exponent)), low=0.3, high=2.0)


def test_powers_with_an_integer_exponent_and_with_several():
    agrees(one("Pow", 15, [1, 4], ints(2)))
    agrees(one("Pow", 15, [1, 4], np.array([0, 1, 2, 3], dtype=F)))


def test_sub_of_an_input_from_itself_is_zero():
    agrees(model_of([helper.make_node("Sub", ["x", "x"], ["y"])], {"x": [1, 3]}))


@pytest.mark.parametrize("opset", [7, 9, 16])
@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (4,), (2, 1), (1, 3, 2, 4)])
def test_prelu_broadcasts_its_slope_to_the_input(opset, shape):
    agrees(one("PRelu", opset, [1, 3, 2, 4], normal(*shape)), runtime=shape != ())


def test_prelu_with_a_computed_slope():
    node = helper.make_node("PRelu", ["x", "s"], ["y"])
    agrees(model_of([node], {"x": [1, 3, 4], "s": [1, 3, 1]}))


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [7, 11, 12, 13])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_softmax_means_other_axes_before_opset_13(operator, opset, axis):
    attributes = {} if axis is None else {"axis": axis}
    if opset < 11 and axis is not None and axis < 0:
        attributes = {"axis": axis + 3}
    agrees(one(operator, opset, [1, 3, 4], **attributes))


LAYOUT = [
    ("Transpose", 13, [1, 2, 3], (), {}),
    ("Transpose", 7, [1, 2, 3], (), {"perm": [0, 2, 1]}),
    ("Flatten", 7, [1, 2, 3], (), {}),
    ("Flatten", 9, [1, 2, 3], (), {"axis": 0}),
    ("Flatten", 11, [1, 2, 3], (), {"axis": -1}),
    ("Flatten", 13, [1, 2, 3], (), {"axis": 3}),
    ("Reshape", 7, [1, 6], (ints(0, 2, -1),), {}),
    ("Reshape", 14, [1, 6], (ints(-1, 2),), {}),
    ("Reshape", 14, [1, 6], (ints(1, 2, 3),), {"allowzero": 1}),
    ("Squeeze", 7, [1, 1, 3], (), {"axes": [1]}),
    ("Squeeze", 11, [1, 1, 3, 1], (), {"axes": [-1]}),
    ("Squeeze", 11, [1, 1, 3, 1], (), {}),
    ("Squeeze", 13, [1, 1, 3, 1], (ints(1, -1),), {}),
    ("Squeeze", 13, [1, 1, 3, 1], (), {}),
    ("Unsqueeze", 7, [1, 3], (), {"axes": [0, 3]}),
    ("Unsqueeze", 11, [1, 3], (), {"axes": [-1]}),
    ("Unsqueeze", 13, [1, 3], (ints(1, -1),), {}),
    ("Expand", 8, [1, 1, 3], (ints(2, 1),), {}),
    ("Expand", 13, [1, 3], (ints(2, 2, 1, 1),), {}),
    ("Tile", 13, [1, 2, 3], (ints(1, 2, 3),), {}),
    ("Dropout", 7, [1, 3], (), {"ratio": 0.3}),
    ("Dropout", 12, [1, 3], (F(0.3),), {}),
    ("Dropout", 13, [1, 3], (F(0.3), np.array(False)), {}),
    ("Gather", 7, [1, 4, 3], (ints(2, 0),), {"axis": 1}),
    ("Gather", 13, [1, 4, 3], (ints(-1),), {"axis": 1}),
    ("Gather", 13, [1, 4, 3], (np.array(2),), {"axis": 1}),
    ("Gather", 13, [1, 4, 3], (np.array([[0, 1], [3, 3]]),), {"axis": 1}),
    ("GatherND", 13, [1, 4, 3], (np.array([[0, 1], [0, -1]]),), {}),
    ("GatherElements", 13, [1, 4, 3], (np.array([[[0, 1, 2], [3, 3, 3]]]),), {"axis": 1}),
    ("ReverseSequence", 10, [1, 4, 3], (ints(3),), {"batch_axis": 0, "time_axis": 1}),
    ("DepthToSpace", 7, [1, 8, 2, 3], (), {"blocksize": 2}),
    ("DepthToSpace", 11, [1, 8, 2, 3], (), {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", 7, [1, 2, 4, 6], (), {"blocksize": 2}),
    ("Trilu", 14, [1, 3, 4], (), {}),
    ("Trilu", 14, [1, 3, 4], (np.array(-1),), {"upper": 0}),
    ("CumSum", 11, [1, 4, 3], (np.array(1),), {}),
    ("CumSum", 14, [1, 4, 3], (np.array(-1),), {"exclusive": 1, "reverse": 1}),
    ("CumSum", 14, [1, 4, 3], (np.array(1),), {"exclusive": 1}),
    ("CumSum", 14, [1, 4, 3], (np.array(1),), {"reverse": 1}),
    ("LRN", 13, [1, 5, 2, 2], (), {"size": 3, "alpha": 0.1}),
    ("LRN", 13, [1, 6, 2, 2], (), {"size": 5, "bias": 2.0}),
    ("MeanVarianceNormalization", 13, [1, 3, 4, 4], (), {}),
    ("GlobalAveragePool", 7, [1, 3, 4, 5], (), {}),
    ("GlobalMaxPool", 7, [1, 3, 4, 5], (), {}),
    ("GlobalLpPool", 7, [1, 3, 4, 5], (), {}),
    ("LpPool", 11, [1, 3, 4, 5], (), {"kernel_shape": [2, 2], "strides": [2, 1]}),
    ("LpPool", 11, [1, 3, 4, 5], (), {"kernel_shape": [2, 2], "p": 1}),
    ("OneHot", 11, [1, 3], (np.array(4), np.array([0.5, 2.0], dtype=F)), {}),
    ("Mod", 13, [1, 5], (F(0.75),), {"fmod": 0}),
    ("TopK", 11, [1, 5], (ints(3),), {}),
    ("TopK", 11, [1, 5], (ints(2),), {"largest": 0}),
    ("TopK", 10, [1, 5], (ints(1),), {}),
    ("TopK", 7, [1, 5], (), {"k": 2}),
    ("Hardmax", 13, [1, 3, 4], (), {}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "opset", "shape", "constants", "attributes"), LAYOUT)
def test_rearrangements_and_friends(operator, opset, shape, constants, attributes):
    outputs = ("y", "indices") if operator == "TopK" else ("y",)
    if operator in ("TopK", "OneHot", "Mod"):
        return several(operator, opset, shape, constants, attributes, outputs)
    runtime = not (operator == "DepthToSpace" and opset == 7)
    agrees(one(operator, opset, shape, *constants, **attributes), runtime=runtime)


def several(operator, opset, shape, constants, attributes, outputs):
    """Operators that need care: more outputs than are understood, indices as input, or no runtime."""
    model = one(operator, opset, shape, *constants, outputs=outputs, **attributes)
    if operator == "TopK":
        del model.graph.output[1:]
    if operator == "OneHot":
        floor = helper.make_node("Floor", ["x"], ["f"])
        model.graph.node[0].input[0] = "f"
        model.graph.node.insert(0, floor)
        agrees(model, low=0.0, high=3.99, runtime=False)
        return
    agrees(model, runtime=operator != "Mod")


SLICES = [
    (9, {"starts": [1], "ends": [3], "axes": [1]}, ()),
    (9, {"starts": [0, -2], "ends": [1, 100]}, ()),
    (7, {"starts": [-3], "ends": [-1], "axes": [2]}, ()),
    (10, {}, (ints(1), ints(3), ints(1))),
    (11, {}, (ints(0, 1), ints(1, 2**62), ints(0, -1), ints(1, 2))),
    (13, {}, (ints(-1), ints(-(2**62)), ints(2), ints(-1))),
    (13, {}, (ints(4), ints(0), ints(2), ints(-2))),
    (13, {}, (ints(0, 0), ints(1, 2))),
]


@pytest.mark.parametrize(("opset", "attributes", "constants"), SLICES)
def test_slices(opset, attributes, constants):
    agrees(one("Slice", opset, [1, 4, 5], *constants, **attributes))


@pytest.mark.parametrize(("opset", "count", "constants", "attributes"), [
    (7, 2, (), {"axis": 1, "split": [1, 5]}), (11, 3, (), {"axis": -1}), (13, 2, (ints(4, 2),), {"axis": 1}),
    (13, 2, (), {"axis": 1}), (18, 4, (), {"axis": 1, "num_outputs": 4}),
])  # fmt: skip
def test_splits(opset, count, constants, attributes):
    outputs = tuple(f"y{i}" for i in range(count))
    width = 7 if "num_outputs" in attributes else 6  # 7 = 2 + 2 + 2 + 1
    agrees(one("Split", opset, [1, width], *constants, outputs=outputs, **attributes))


PADS = [
    (7, {"pads": [0, 1, 0, 2, 0, 1], "value": 1.5}, ()),
    (10, {"pads": [0, 1, 1, 0, 2, 1], "mode": "reflect"}, ()),
    (11, {}, (ints(0, 1, 0, 0, 2, 1), F(0.5))),
    (11, {"mode": "edge"}, (ints(0, 1, 0, 0, 2, 1),)),
    (13, {"mode": "reflect"}, (ints(0, 1, 2, 0, 2, 1),)),
    (13, {}, (ints(0, -1, 0, 0, 2, -1),)),
    (13, {}, (ints(0, -1, 1, 0, -1, -2), F(2.0))),
    (18, {}, (ints(1, 2), F(0.5), ints(1))),
    (18, {}, (ints(1, 2, 0, 1), None, ints(-1, 1))),
    (19, {"mode": "wrap"}, (ints(0, 1, 2, 0, 2, 1),)),
]


@pytest.mark.parametrize(("opset", "attributes", "constants"), PADS)
def test_pads(opset, attributes, constants):
    agrees(one("Pad", opset, [1, 3, 4], *constants, **attributes))


REDUCTIONS = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceProd",
]  # fmt: skip


@pytest.mark.parametrize("operator", REDUCTIONS)
@pytest.mark.parametrize("opset", [7, 11, 13, 18])
@pytest.mark.parametrize(("axes", "keep"), [([1], 1), ([2], 0), ([1, 2], 0), ([-1], 1), (None, 1)])
def test_reductions(operator, opset, axes, keep):
    as_input = opset >= (13 if operator == "ReduceSum" else 18)
    if opset < 11 and axes == [-1]:
        axes = [2]
    constants = (ints(*axes),) if as_input and axes else ()
    attributes = {"keepdims": keep} | ({"axes": axes} if axes and not as_input else {})
    agrees(one(operator, opset, [1, 2, 3], *constants, **attributes), low=0.2, high=2.0)


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions_over_nothing(operator):
    source = agrees(one(operator, 18, [1, 3], ints(), noop_with_empty_axes=1), low=0.2, high=2.0, reference=False,
                    runtime=operator not in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare"))  # fmt: skip
    assert source.graph.output_shapes == ((3,),)


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("attributes", [{}, {"axis": 1}, {"axis": -1, "keepdims": 0}])
def test_arguments_of_extremes(operator, attributes):
    agrees(with_integer_output(one(operator, 13, [1, 3, 4], **attributes)))


def with_integer_output(model):
    """The node's integers cast to float at the end."""
    model.graph.node[0].output[0] = "i"
    model.graph.node.append(helper.make_node("Cast", ["i"], ["y"], to=1))
    return model


@pytest.mark.parametrize("operator", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
def test_comparisons(operator):
    source = agrees(with_integer_output(one(operator, 16, [1, 6], np.array([0, 1, -1, 0, 0.5, 0], dtype=F))))
    assert any(node.kind == "Discontinuous" for node in source.graph)


def test_logic_and_selection_by_a_computed_condition():
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["p"]),
        helper.make_node("Less", ["x", "c"], ["q"]),
        helper.make_node("And", ["p", "q"], ["a"]),
        helper.make_node("Not", ["a"], ["na"]),
        helper.make_node("Or", ["na", "p"], ["o"]),
        helper.make_node("Where", ["a", "x", "c"], ["w"]),
        helper.make_node("Cast", ["o"], ["f"], to=1),
        helper.make_node("Add", ["w", "f"], ["y"]),
    ]
    agrees(model_of(nodes, {"x": [1, 6]}, {"zero": F(0), "c": np.abs(normal(6))}, opset=16))


@pytest.mark.parametrize("to", [1, 6, 7, 9, 11])
def test_casts(to):
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=to), helper.make_node("Cast", ["i"], ["y"], to=1)]
    source = agrees(model_of(nodes, {"x": [1, 6]}, opset=13))
    assert any(node.kind == "Discontinuous" for node in source.graph) == (to in (6, 7, 9))


def test_selection_by_a_constant_condition_is_continuous():
    node = helper.make_node("Where", ["m", "x", "c"], ["y"])
    source = agrees(model_of([node], {"x": [1, 4]}, {"m": np.array([True, False, True, False]), "c": normal(4)}))
    assert all(node.kind != "Discontinuous" for node in source.graph)
    node = helper.make_node("Where", ["m", "x", "z"], ["y"])
    agrees(model_of([node], {"x": [1, 4], "z": [1, 4]}, {"m": np.array([[True], [False]])}))


def test_scatter():
    indices = np.array([[0, 1], [0, 3]])
    agrees(one("ScatterND", 13, {"x": [1, 4, 2]}, indices, normal(2, 2)))
    node = helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=1)
    agrees(model_of([node], {"x": [1, 4], "u": [1, 2]}, {"i": np.array([[2, 0]])}, opset=13))


def test_batch_normalization():
    for opset in (7, 9, 14, 15):
        constants = (normal(3), normal(3), normal(3), np.abs(normal(3)))
        agrees(one("BatchNormalization", opset, [1, 3, 4, 2], *constants, epsilon=1e-3, momentum=0.5))
        agrees(one("BatchNormalization", opset, [1, 3], *constants))


NORMALIZATIONS = [
    ("LayerNormalization", 17, [1, 3, 4], (normal(4), normal(4)), {"epsilon": 1e-3}),
    ("LayerNormalization", 17, [1, 3, 4], (normal(3, 4),), {"axis": 1}),
    ("InstanceNormalization", 7, [1, 3, 4, 2], (normal(3), normal(3)), {}),
    ("GroupNormalization", 18, [1, 4, 3, 2], (normal(2), normal(2)), {"num_groups": 2}),
    ("GroupNormalization", 21, [1, 4, 3, 2], (normal(4), normal(4)), {"num_groups": 2}),
    ("RMSNormalization", 23, [1, 3, 4], (normal(4),), {}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "opset", "shape", "constants", "attributes"), NORMALIZATIONS)
def test_normalizations(operator, opset, shape, constants, attributes):
    agrees(one(operator, opset, shape, *constants, **attributes), runtime=opset != 18, tolerance=1e-4)


GEMMS = [
    ({}, (4, 5), (5,)), ({"transB": 1}, (5, 4), (1, 5)), ({"alpha": 0.3, "beta": 1.7}, (4, 5), (5,)),
    ({"beta": 0.0}, (4, 5), (5,)), ({"alpha": 2.0}, (4, 5), None), ({}, (4, 5), ()), ({}, (4, 5), (1,)),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "weight", "bias"), GEMMS)
@pytest.mark.parametrize("opset", [7, 11, 13])
def test_gemm(attributes, weight, bias, opset):
    if bias is None and opset < 11:
        bias = (5,)
    agrees(one("Gemm", opset, [1, 4], normal(*weight), None if bias is None else normal(*bias), **attributes))


def test_gemm_with_a_transposed_input_a_left_constant_and_a_computed_bias():
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transA=1)
    agrees(model_of([node], {"x": [1, 3], "b": [1, 2]}, {"w": normal(1, 2)}))
    node = helper.make_node("Gemm", ["w", "x"], ["y"], transB=1, alpha=0.5)
    agrees(model_of([node], {"x": [1, 3]}, {"w": normal(2, 3)}))
    node = helper.make_node("Gemm", ["x", "z", "w"], ["y"], transB=1, beta=0.5)
    agrees(model_of([node], {"x": [1, 3], "z": [1, 3]}, {"w": normal(1, 1)}))


@pytest.mark.parametrize(("shape", "weight"), [
    ([1, 4], (4, 3)), ([1, 2, 4], (4, 3)), ([1, 2, 4], (4,)), ([1, 2, 4], (1, 4, 3)), ([1, 2, 4], (3, 4, 5)),
    ([1, 4], (2, 4, 3)), ([4], (4, 3)), ([4], (4,)), ([4], (2, 4, 3)), ([4], (1, 4, 3)), ([1, 3, 2, 4], (3, 4, 2)),
])  # fmt: skip
def test_matmul_by_a_constant_on_the_right(shape, weight):
    agrees(one("MatMul", 13, shape, normal(*weight)))


@pytest.mark.parametrize(("shape", "weight"), [
    ([4, 1], (3, 4)), ([1, 4, 2], (3, 4)), ([1, 4, 2], (4,)), ([1, 4, 2], (5, 3, 4)), ([4], (3, 4)), ([4], (2, 3, 4)),
    ([4], (4,)), ([1, 4, 2], (1, 3, 4)),
])  # fmt: skip
def test_matmul_by_a_constant_on_the_left(shape, weight):
    node = helper.make_node("MatMul", ["c", "x"], ["y"])
    whole = shape if shape[0] == 4 else None
    agrees(model_of([node], {"x": shape}, {"c": normal(*weight)}, opset=13), input_shape=whole)


@pytest.mark.parametrize(
    ("a", "b"), [([1, 2, 3], [1, 3, 4]), ([1, 3], [1, 3, 2]), ([3], [3]), ([1, 2, 3], [3]), ([3], [1, 3, 2])]
)
def test_matmul_of_two_inputs(a, b):
    agrees(model_of([helper.make_node("MatMul", ["x", "z"], ["y"])], {"x": a, "z": b}))


@pytest.mark.parametrize(("equation", "weight"), [
    ("bij,jk->bik", (3, 4)), ("bij,kj->bki", (4, 3)), ("bij,jk", (3, 4)), ("bij,bij->b", (1, 2, 3)), ("bij,c->cjb", (5,)),
])  # fmt: skip
def test_einsum(equation, weight):
    agrees(one("Einsum", 12, [1, 2, 3], normal(*weight), equation=equation))


def test_einsum_of_one_and_of_two_inputs():
    agrees(one("Einsum", 12, [1, 2, 3], equation="bij->jb"))
    node = helper.make_node("Einsum", ["x", "z"], ["y"], equation="bhid,bhjd->bhij")
    agrees(model_of([node], {"x": [1, 2, 3, 4], "z": [1, 2, 5, 4]}, opset=12))
