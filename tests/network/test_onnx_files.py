"""Files that cannot be read, inputs that have no shape, operations that are not understood: all say so in words."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from lipscope.claims.errors import LipscopeError, ModelError, UnsupportedError
from lipscope.network.load.onnx_import import list_operations, load_onnx
from network.onnx_cases import agrees, model_of, read, value_of

F = np.float32


def dense(opset: int = 13, **kwargs) -> onnx.ModelProto:
    weight = np.arange(12, dtype=F).reshape(4, 3)
    return model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        {"x": ["n", 4]},
        {"w": weight},
        opset=opset,
        **kwargs,
    )


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="found nothing"):
        load_onnx(tmp_path / "none.onnx")


def test_a_folder(tmp_path):
    with pytest.raises(ModelError, match="folder"):
        load_onnx(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello world, this is text", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04abc", b"\x00" * 100]
)
def test_content_that_is_no_model(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="expected an ONNX model"):
        load_onnx(path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_a_file_cut_off_or_with_changed_bytes_never_crashes(data):
    content = bytearray(dense().SerializeToString())
    cut = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:cut]
    else:
        content[cut] = data.draw(st.integers(0, 255))
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(bytes(content))
        try:
            source = load_onnx(path)
        except LipscopeError as error:
            assert len(str(error)) > 20
        else:
            assert len(source.graph) >= 1


def test_every_truncation_is_refused_or_complete(tmp_path):
    content = dense().SerializeToString()
    complete = load_onnx(saved(tmp_path, dense())).graph.digest
    path = tmp_path / "cut.onnx"
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        try:
            digest = load_onnx(path).graph.digest
        except LipscopeError:
            continue
        assert digest == complete  # only the trailer (opset) may be cut, and then the opset is missing


def test_a_gzipped_model(tmp_path):
    path = tmp_path / "model.onnx.gz"
    path.write_bytes(gzip.compress(dense().SerializeToString()))
    assert load_onnx(path).graph.output_shapes == ((3,),)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ModelError, match="cannot read"):
        load_onnx(path)
    path.write_bytes(b"not gzip at all")
    with pytest.raises(ModelError, match="cannot read"):
        load_onnx(path)


@pytest.mark.parametrize("opset", [1, 6, 25, 99])
def test_an_opset_whose_meaning_is_not_implemented(opset):
    with pytest.raises(ModelError, match=f"opset 7 to 24 .* got {opset}"):
        read(dense(opset))


def test_no_opset(tmp_path):
    model = dense()
    del model.opset_import[:]
    with pytest.raises(ModelError, match="got none"):
        load_onnx(saved(tmp_path, model))


def external(model: onnx.ModelProto, location: str, length: int = 48) -> onnx.ModelProto:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return model


def test_external_data(tmp_path):
    weight = np.arange(12, dtype=F)
    (tmp_path / "w.bin").write_bytes(weight.tobytes())
    graph = load_onnx(saved(tmp_path, external(dense(), "w.bin"))).graph
    assert (graph.nodes[1].weight == weight.reshape(4, 3).T).all()


def test_external_data_that_is_missing_or_short_or_a_folder(tmp_path):
    path = saved(tmp_path, external(dense(), "w.bin"))
    with pytest.raises(ModelError, match="external data of 'w'"):
        load_onnx(path)
    (tmp_path / "w.bin").write_bytes(b"\x00" * 20)
    with pytest.raises(ModelError, match="external data of 'w'"):
        load_onnx(path)
    (tmp_path / "w.bin").unlink()
    (tmp_path / "w.bin").mkdir()
    with pytest.raises(ModelError, match="external data of 'w'"):
        load_onnx(path)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "", "a/../../secret.bin", "link.bin"])
def test_external_data_outside_the_folder_is_not_read(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(b"\x00" * 48)
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="inside the folder"):
        load_onnx(saved(folder, external(dense(), location)))


def test_weights_with_too_few_numbers():
    model = dense()
    model.graph.initializer[0].raw_data = b"\x00" * 8
    with pytest.raises(ModelError, match="'w'"):
        read(model)


def test_sparse_weights():
    model = dense()
    values = numpy_helper.from_array(np.array([1.0], dtype=F), "sparse")
    indices = numpy_helper.from_array(np.array([0], dtype=np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [12]))
    with pytest.raises(ModelError, match="sparse"):
        read(model)


def test_a_name_that_nobody_produces():
    model = dense()
    model.graph.node[0].input[1] = "nowhere"
    with pytest.raises(ModelError, match="'nowhere'"):
        read(model)


def test_shapes_that_do_not_fit():
    model = dense()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    with pytest.raises(ModelError, match="'fc'"):
        read(model)


# ------------------------------------------------------------------------------------------------------- inputs


def relu(shape, **kwargs):
    return model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": shape}, **kwargs)


@pytest.mark.parametrize(("declared", "run", "example"), [
    (["batch", 3], (1, 3), (3,)), ([None, 3], (1, 3), (3,)), ([1, 3, 4], (1, 3, 4), (3, 4)), ([5], (5,), (5,)),
    ([1], (1,), (1,)), (["n"], (1,), (1,)), ([], (), ()), ([1, 1], (1, 1), (1,)),
])  # fmt: skip
def test_the_batch_axis(declared, run, example):
    source = agrees(relu(declared))
    assert source.run_shapes == (run,)
    assert source.graph.input_shapes == source.graph.output_shapes == (example,)


@pytest.mark.parametrize(("declared", "given", "run", "example"), [
    (["n", "c", 4], (3, 4), (1, 3, 4), (3, 4)), (None, (3,), (1, 3), (3,)), ([8, 3], (8, 3), (8, 3), (8, 3)),
    (["n", 3], (3,), (1, 3), (3,)), (["n"], (6,), (6,), (6,)), ([1, "c"], (2,), (1, 2), (2,)),
])  # fmt: skip
def test_a_given_input_shape(declared, given, run, example):
    source = read(relu(declared), given)
    assert source.run_shapes == (run,)
    assert source.graph.input_shapes == (example,)


@pytest.mark.parametrize(("declared", "given", "words"), [
    ([8, 3], None, "batch"), (["n", "c"], None, "--input-shape"), (None, None, "no shape"), ([1, 3], (4,), "fits"),
    (["n", 3, "w"], (3,), "fits"), ([8, 3], (3,), "fits"), (["n", 3, 4], (4, 4), "fits"),
])  # fmt: skip
def test_shapes_that_are_refused(declared, given, words):
    with pytest.raises(ModelError, match=words):
        read(relu(declared), given)


def test_a_damaged_name_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, dense())
    content = path.read_bytes()
    assert b"MatMul" in content
    path.write_bytes(content.replace(b"MatMul", b"\xa0atMul", 1))
    with pytest.raises(ModelError, match="UTF-8"):
        load_onnx(path)


def test_an_input_shape_for_two_inputs():
    model = model_of([helper.make_node("Add", ["x", "z"], ["y"])], {"x": [1, 2], "z": [1, 2]})
    with pytest.raises(ModelError, match="each of the 2 inputs"):
        read(model, (2,))
    assert read(model, (2,), (2,)).graph.input_shapes == ((2,), (2,))
    with pytest.raises(ModelError, match="fits"):
        read(model, (2,), (3,))
    open_ones = model_of([helper.make_node("Add", ["x", "z"], ["y"])], {"x": ["n", "c"], "z": ["n", "c"]})
    with pytest.raises(ModelError, match="of every input where there are several"):
        read(open_ones)
    assert read(open_ones, (4,), (4,)).graph.input_shapes == ((4,), (4,))
    model = model_of([helper.make_node("Add", ["x", "z"], ["y"])], {"x": ["n", "c"], "z": [1, 2]})
    assert read(model, (2,)).graph.input_shapes == ((2,), (2,))


def test_a_long_first_axis_beside_an_open_batch_is_no_batch():
    model = model_of([helper.make_node("Add", ["x", "z"], ["y"])], {"x": ["n", 1, 2], "z": [3, 1, 2]})
    source = agrees(model)
    assert source.run_shapes == ((1, 1, 2), (3, 1, 2))
    assert source.graph.input_shapes == ((1, 2), (3, 1, 2))
    fixed = model_of([helper.make_node("Add", ["x", "z"], ["y"])], {"x": [8, 2], "z": [8, 2]})
    with pytest.raises(ModelError, match="batch of 1"):
        read(fixed)


def test_initializers_that_are_listed_as_inputs():
    model = dense(ir=3)
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    assert agrees(model).run_shapes == ((1, 4),)


def test_several_inputs_and_outputs_are_joined_in_order():
    nodes = [helper.make_node("Relu", ["z"], ["b"]), helper.make_node("Neg", ["x"], ["a"])]
    source = agrees(model_of(nodes, {"x": [1, 2], "z": ["n", 1, 3]}, outputs=("a", "b")))
    assert source.graph.input_shapes == source.graph.output_shapes == ((2,), (1, 3))
    assert source.graph.input_size == 5


def test_a_model_without_inputs():
    model = model_of([helper.make_node("Relu", ["c"], ["y"])], {}, {"c": np.ones(2, dtype=F)})
    with pytest.raises(ModelError, match="input"):
        read(model)


def test_double_and_half_precision():
    weight = np.random.default_rng(0).standard_normal((4, 3))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    source = agrees(model_of([node], {"x": [1, 4]}, {"w": weight}, kind=TensorProto.DOUBLE), tolerance=1e-14)
    assert source.dtype == "float64"
    half = model_of([node], {"x": [1, 4]}, {"w": weight.astype(np.float16)}, kind=TensorProto.FLOAT16)
    source = agrees(half, runtime=False, tolerance=1e-6)
    assert source.dtype == "float32"
    assert (source.graph.nodes[1].weight == weight.astype(np.float16).T).all()


def test_integer_inputs_are_refused_with_everything_behind_them():
    nodes = [helper.make_node("Gather", ["table", "x"], ["e"], name="embed"), helper.make_node("Relu", ["e"], ["y"])]
    model = model_of(nodes, {"x": [1, 3]}, {"table": np.ones((5, 2), dtype=F)}, kind=TensorProto.INT64)
    with pytest.raises(UnsupportedError) as caught:
        read(model)
    assert [(o.operator, o.layer) for o in caught.value.operations] == [("Input", "x"), ("Gather", "embed")]


# --------------------------------------------------------------------------------------------------- operations


def mixed() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("NonZero", ["a"], ["b"], name="where_not_zero"),
        helper.make_node("Det", ["m"], ["d"]),
        helper.make_node("Conv", ["a", "w"], ["c"], name="conv"),
        helper.make_node("Unheard", ["c"], ["u"], name="custom", domain="com.example"),
        helper.make_node("Sigmoid", ["u"], ["s"], name="behind"),
        helper.make_node("Pow", ["c", "p"], ["q"], name="power"),
        helper.make_node("Round", ["c"], ["r"], name="round"),
        helper.make_node("Shape", ["c"], ["shape"], name="shape"),
        helper.make_node("Sum", ["q", "r"], ["y"], name="total"),
        helper.make_node("Cast", ["b"], ["bf"], to=1, name="cast"),
        helper.make_node("ReduceSum", ["bf"], ["bs"], keepdims=0, name="sum"),
        helper.make_node("Concat", ["s", "d"], ["never"], axis=0, name="never"),
    ]
    constants = {"w": np.ones((2, 1, 1, 1), dtype=F), "p": np.array(0.3, dtype=F), "m": np.eye(2, dtype=F)}
    return model_of(nodes, {"x": [1, 1, 2, 2]}, constants, outputs=("y", "bs", "s"))


def test_all_operations_that_are_not_understood_are_listed_at_once():
    with pytest.raises(UnsupportedError) as caught:
        read(mixed())
    found = [(o.operator, o.layer) for o in caught.value.operations]
    assert found == [("NonZero", "where_not_zero"), ("Unheard", "custom"), ("Pow", "power")]
    assert all(len(o.reason) > 10 for o in caught.value.operations)


def test_the_list_of_operations(tmp_path):
    found = {o.layer: o for o in list_operations(saved(tmp_path, mixed()))}
    status = {name: o.status for name, o in found.items()}
    assert status == {
        "first": "supported", "where_not_zero": "unsupported", "d": "folded", "conv": "supported", "custom": "unsupported",
        "behind": "supported", "power": "unsupported", "round": "discontinuous", "shape": "folded", "total": "supported",
        "cast": "supported", "sum": "supported", "never": "supported",
    }  # fmt: skip
    assert found["conv"].shape == (1, 2, 2, 2)
    assert found["shape"].shape == (4,)
    assert found["custom"].shape is None


RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("operator", RECURRENT)
def test_recurrent_layers_and_what_follows(operator):
    gates = RECURRENT[operator]
    nodes = [
        helper.make_node(operator, ["x", "w", "r"], ["h"], name="rnn", hidden_size=3),
        helper.make_node("Squeeze", ["h", "axis"], ["s"], name="squeeze"),
        helper.make_node("Pow", ["s", "p"], ["y"], name="power"),
    ]
    constants = {"w": np.ones((1, gates * 3, 2), dtype=F), "r": np.ones((1, gates * 3, 3), dtype=F),
                 "axis": np.array([1]), "p": np.array(0.3, dtype=F)}  # fmt: skip
    with pytest.raises(UnsupportedError) as caught:
        read(model_of(nodes, {"x": [5, 1, 2]}, constants), (5, 1, 2))
    assert [o.operator for o in caught.value.operations] == [operator, "Pow"]


REFUSED = [
    ("BatchNormalization", [np.ones(2, dtype=F)] * 4, {"training_mode": 1}, "eval"),
    ("Dropout", [np.array(0.5, dtype=F), np.array(True)], {}, "eval"),
    ("TopK", [np.array([2])], {"sorted": 0}, "sorted"),
    ("Shrink", [], {"lambd": 0.5, "bias": 0.2}, "jumps"),
    ("QuantizeLinear", [np.array(0.1, dtype=F)], {}, "quantisation"),
    ("ArgMax", [], {"select_last_index": 1}, "last index"),
    ("RandomNormalLike", [], {}, "random"),
    ("Gelu", [], {"domain": "com.microsoft"}, "com.microsoft"),
    ("Pad", [np.array([0, 0, 0, 1]), np.array(-np.inf, dtype=F)], {}, "inf"),
]


@pytest.mark.parametrize(("operator", "constants", "attributes", "words"), REFUSED)
def test_refusals_say_why(operator, constants, attributes, words):
    names = [f"c{i}" for i in range(len(constants))]
    outputs = ["y", "unused"] if operator == "TopK" else ["y"]
    node = helper.make_node(operator, ["x", *names], outputs, name="here", **attributes)
    with pytest.raises(UnsupportedError, match=words) as caught:
        read(model_of([node], {"x": [1, 2]}, dict(zip(names, constants, strict=True)), opset=17))
    assert [o.layer for o in caught.value.operations] == ["here"]


@pytest.mark.parametrize(("operator", "attributes"), [("MaxPool", {"kernel_shape": [2]}), ("TopK", {})])
def test_a_second_output_that_is_read(operator, attributes):
    constants = {"k": np.array([2])} if operator == "TopK" else {}
    node = helper.make_node(operator, ["x", *constants], ["v", "i"], name="here", **attributes)
    model = model_of([node, helper.make_node("Cast", ["i"], ["y"], to=1)], {"x": [1, 1, 4]}, constants)
    with pytest.raises(UnsupportedError, match="its output 'i'"):
        read(model)


def test_division_by_a_zero():
    model = model_of(
        [helper.make_node("Div", ["x", "c"], ["y"], name="here")], {"x": [1, 2]}, {"c": np.zeros(2, dtype=F)}
    )
    with pytest.raises(ModelError, match="zero"):
        read(model)


def test_a_node_that_reaches_no_output_is_harmless(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], ["n"], name="dead"), helper.make_node("Relu", ["x"], ["y"])]
    model = model_of(nodes, {"x": [1, 2]})
    assert len(agrees(model).graph) == 2
    assert [o.status for o in list_operations(saved(tmp_path, model))] == ["unsupported", "supported"]


# ------------------------------------------------------------------------------------------------------ folding


def test_shape_arithmetic_is_folded():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axis0"], ["n1"]),
        helper.make_node("Concat", ["n1", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["flat"]),
        helper.make_node("Cast", ["s"], ["sf"], to=1),
        helper.make_node("ReduceProd", ["sf"], ["size"], keepdims=0),
        helper.make_node("Div", ["flat", "size"], ["scaled"]),
        helper.make_node("ConstantOfShape", ["axis1"], ["ones"], value=helper.make_tensor("v", 1, [1], [2.0])),
        helper.make_node("Range", ["zero", "six", "one"], ["range"]),
        helper.make_node("Cast", ["range"], ["rf"], to=1),
        helper.make_node("Add", ["scaled", "rf"], ["t"]),
        helper.make_node("Mul", ["t", "ones"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axis0": np.array([0]), "axis1": np.array([1]), "minus": np.array([-1]),
                 "six": np.array(6), "one": np.array(1)}  # fmt: skip
    source = agrees(model_of(nodes, {"x": ["batch", 2, 3]}, constants, opset=13))
    assert [node.kind for node in source.graph] == ["Input", "Reshape", "DivConstant", "AddConstant", "MulConstant"]


def test_weights_in_constant_nodes_and_as_arithmetic():
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.ones((3, 4), dtype=F))),
        helper.make_node("Constant", [], ["g"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("Transpose", ["w"], ["wt"]),
        helper.make_node("Mul", ["wt", "g"], ["scaled"]),
        helper.make_node("MatMul", ["x", "scaled"], ["y"]),
    ]
    source = agrees(model_of(nodes, {"x": [1, 4]}))
    assert [node.kind for node in source.graph] == ["Input", "Dense"]


def test_quantised_weights_are_dequantised():
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    constants = {
        "q": np.arange(8, dtype=np.int8).reshape(4, 2),
        "s": np.array(0.1, dtype=F),
        "z": np.array(3, dtype=np.int8),
    }
    agrees(model_of(nodes, {"x": [1, 4]}, constants))


@pytest.mark.parametrize("condition", [True, False])
def test_a_branch_on_a_constant(condition):
    def branch(operator):
        inner = [helper.make_node(operator, ["x"], [f"out_{operator}"])]
        return helper.make_graph(inner, operator, [], [helper.make_tensor_value_info(f"out_{operator}", 1, None)])

    nodes = [helper.make_node("If", ["c"], ["t"], then_branch=branch("Relu"), else_branch=branch("Tanh")),
             helper.make_node("Neg", ["t"], ["y"])]  # fmt: skip
    source = agrees(model_of(nodes, {"x": [1, 3]}, {"c": np.array(condition)}))
    assert source.graph.nodes[1].function == ("relu" if condition else "tanh")


def test_local_functions_are_inlined():
    function = helper.make_function("mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                                    [helper.make_opsetid("", 17)])  # fmt: skip
    model = model_of([helper.make_node("Twice", ["x"], ["y"], domain="mine")], {"x": [1, 3]})
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    source = agrees(model)
    assert value_of(source.graph, np.array([1.0, -2.0, 3.0])).tolist() == [2.0, -4.0, 6.0]


def test_integer_division_of_computed_numbers_is_refused():
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=7), helper.make_node("Div", ["i", "two"], ["h"], name="half"),
             helper.make_node("Cast", ["h"], ["y"], to=1)]  # fmt: skip
    with pytest.raises(UnsupportedError, match="cut off"):
        read(model_of(nodes, {"x": [1, 3]}, {"two": np.array(2)}))
