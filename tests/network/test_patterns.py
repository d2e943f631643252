"""Written-out functions are found again, and the graph still computes what the model computes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from lipscope.network.graph import Graph
from lipscope.network.load.patterns import recognise
from network.onnx_cases import largest_error, model_of, read, value_of

F = np.float32


class Writer:
    """Collects ONNX nodes from Python arithmetic."""

    def __init__(self) -> None:
        self.nodes, self.constants = [], {}

    def __call__(self, operator: str, *operands, **attributes) -> str:
        names = []
        for x in operands:
            if not isinstance(x, str):
                name = f"c{len(self.constants)}"
                self.constants[name] = np.asarray(x, dtype=x.dtype if isinstance(x, np.ndarray) else F)
                x = name
            names.append(x)
        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [out], **attributes))
        return out

    def graph(self, output: str, shape, opset: int = 17):
        self.nodes.append(helper.make_node("Identity", [output], ["y"]))
        return read(model_of(self.nodes, {"x": shape}, self.constants, opset=opset))


def recognised(build, shape=(1, 3, 4), low=-4.0, high=4.0, opset=17) -> Graph:
    """The graph with patterns recognised, compared with the source model and with the graph before."""
    w = Writer()
    source = w.graph(build(w), list(shape), opset)
    graph = recognise(source.graph)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.uniform(low, high, source.run_shapes[0]).astype(F).astype(float)
        found = value_of(graph, x.reshape(-1))
        assert largest_error(found, value_of(source.graph, x.reshape(-1))) <= 1e-6
        assert largest_error(found, source.run([x])[0].reshape(-1)) <= 1e-5
    return graph


def kinds(graph: Graph) -> list[str]:
    return [getattr(node, "function", node.kind) for node in graph.nodes[1:]]


ROOT_HALF = F(0.7071067690849304)
CUBIC, ROOT = F(0.044714998453855515), F(0.7978845834732056)


def erf_gate(w, form):
    inner = w("Mul", "x", ROOT_HALF) if "mul" in form else w("Div", "x", F(np.sqrt(2)))
    return w("Add", w("Erf", inner), 1.0) if "right" in form else w("Add", 1.0, w("Erf", inner))


GELUS = {
    "half first": lambda w: w("Mul", w("Mul", "x", 0.5), erf_gate(w, "div right")),
    "half last": lambda w: w("Mul", w("Mul", "x", erf_gate(w, "div right")), 0.5),
    "half last on the left": lambda w: w("Mul", 0.5, w("Mul", erf_gate(w, "mul"), "x")),
    "half in the gate": lambda w: w("Mul", "x", w("Mul", erf_gate(w, "mul right"), 0.5)),
    "divided by two": lambda w: w("Div", w("Mul", "x", erf_gate(w, "div")), 2.0),
    "half inside": lambda w: w("Mul", "x", w("Add", w("Mul", w("Erf", w("Mul", "x", ROOT_HALF)), 0.5), 0.5)),
    "of a scaled input": lambda w: (lambda z: w("Mul", w("Mul", z, 0.5), w("Add", w("Erf", w("Mul", z, ROOT_HALF)), 1.0)))(
        w("Mul", "x", 2.0)),
}  # fmt: skip


@pytest.mark.parametrize("form", GELUS)
def test_gelu(form):
    found = kinds(recognised(GELUS[form]))
    assert found == (["MulConstant", "gelu"] if "scaled" in form else ["gelu"])


def tanh_argument(w, form):
    if form == "pow":
        return w("Mul", w("Add", "x", w("Mul", w("Pow", "x", 3.0), CUBIC)), ROOT)
    if form == "products":
        cube = w("Mul", w("Mul", "x", "x"), "x")
        return w("Mul", ROOT, w("Add", "x", w("Mul", CUBIC, cube)))
    square = w("Mul", "x", "x")
    return w("Mul", w("Mul", "x", ROOT), w("Add", w("Mul", square, CUBIC), 1.0))


@pytest.mark.parametrize("form", ["pow", "products", "factored"])
def test_gelu_by_tanh(form):
    def build(w):
        return w("Mul", w("Mul", "x", 0.5), w("Add", w("Tanh", tanh_argument(w, form)), 1.0))

    assert kinds(recognised(build)) == ["gelu_tanh"]


SIXTH = F(1 / 6)
OTHERS = {
    "silu": lambda w: w("Mul", "x", w("Sigmoid", "x")),
    "silu on the right": lambda w: w("Mul", w("Sigmoid", w("Mul", "x", F(1.702))), "x"),
    "silu by division": lambda w: w("Div", "x", w("Add", w("Exp", w("Neg", "x")), 1.0)),
    "silu by reciprocal": lambda w: w("Mul", "x", w("Div", 1.0, w("Add", 1.0, w("Exp", w("Neg", "x"))))),
    "hardswish": lambda w: w("Div", w("Mul", "x", w("Clip", w("Add", "x", 3.0), 0.0, 6.0)), 6.0),
    "hardswish by a sixth": lambda w: w("Mul", "x", w("Mul", w("Clip", w("Add", "x", 3.0), 0.0, 6.0), SIXTH)),
    "hardswish, sixth last": lambda w: w("Mul", w("Mul", "x", w("Clip", w("Add", "x", 3.0), 0.0, 6.0)), SIXTH),
    "hardswish by hard sigmoid": lambda w: w("Mul", "x", w("HardSigmoid", "x", alpha=1 / 6, beta=0.5)),
    "mish": lambda w: w("Mul", "x", w("Tanh", w("Softplus", "x"))),
    "mish written out": lambda w: w("Mul", "x", w("Tanh", w("Log", w("Add", w("Exp", "x"), 1.0)))),
    "softplus": lambda w: w("Log", w("Add", 1.0, w("Exp", "x"))),
    "softsign": lambda w: w("Div", "x", w("Add", w("Abs", "x"), 1.0)),
    "tanhshrink": lambda w: w("Sub", "x", w("Tanh", "x")),
    "abs": lambda w: w("Max", "x", w("Neg", "x")),
    "abs by a square root": lambda w: w("Sqrt", w("Mul", "x", "x")),
    "leaky_relu": lambda w: w("Max", w("Mul", "x", F(0.1)), "x"),
    "leaky_relu with a negative slope": lambda w: w("Max", w("Mul", "x", F(-0.3)), "x"),
    "prelu": lambda w: w("Sub", w("Relu", "x"), w("Mul", w("Relu", w("Neg", "x")), SLOPE)),
    "prelu by abs": lambda w: w("Add", w("Relu", "x"), w("Mul", w("Mul", w("Sub", "x", w("Abs", "x")), SLOPE), 0.5)),
    "prelu by a sum": lambda w: w("Add", w("Mul", w("Neg", w("Relu", w("Neg", "x"))), SLOPE), w("Relu", "x")),
}  # fmt: skip
SLOPE = np.array([[0.2], [-0.5], [1.5]], dtype=F)


@pytest.mark.parametrize("form", OTHERS)
def test_activations(form):
    assert kinds(recognised(OTHERS[form])) == [form.split()[0].rstrip(",")]


NEITHER = {
    "another variable in the gate": lambda w: w("Mul", "x", w("Sigmoid", w("Add", "x", 1.0))),
    "gelu with a wrong constant": lambda w: w("Mul", "x", w("Add", w("Erf", w("Mul", "x", F(0.7072))), 1.0)),
    "gelu with another shift": lambda w: w("Mul", "x", w("Add", w("Erf", w("Mul", "x", ROOT_HALF)), F(1.0001))),
    "hardswish with another end": lambda w: w("Mul", "x", w("Clip", w("Add", "x", 3.0), 0.0, 5.0)),
    "cubic with a wrong constant": lambda w: w("Mul", "x", w("Add", w("Tanh", w("Mul", w("Add", "x", w("Mul", w(
        "Pow", "x", 3.0), F(0.0448))), ROOT)), 1.0)),
    "a large slope": lambda w: w("Max", w("Mul", "x", F(1.5)), "x"),
    "log of two plus": lambda w: w("Log", w("Add", w("Exp", "x"), 2.0)),
}  # fmt: skip


@pytest.mark.parametrize("form", NEITHER)
def test_what_only_resembles_a_pattern_stays(form):
    named = {"silu", "gelu", "gelu_tanh", "hardswish", "leaky_relu", "softplus", "mish"}
    assert not named & set(kinds(recognised(NEITHER[form])))


def softplus_above(w, threshold, beta=1.0):
    u = w("Mul", "x", beta)
    return w("Where", w("Greater", u, threshold), "x", w("Div", w("Softplus", u), beta))


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_softplus_with_a_threshold_beyond_float32(beta):
    graph = recognised(lambda w: softplus_above(w, 20.0, beta), high=40.0)
    assert [k for k in kinds(graph) if "Constant" not in k] == ["softplus"]


def test_softplus_with_a_threshold_that_jumps():
    assert "Discontinuous" in kinds(recognised(lambda w: softplus_above(w, 2.0)))


def test_a_factor_next_to_one_is_kept():
    graph = recognised(lambda w: w("Mul", w("Mul", "x", w("Sigmoid", "x")), F(1.0000001)))
    assert kinds(graph) == ["silu", "MulConstant"]


def centred(w, keep=1):
    mean = w("ReduceMean", "x", axes=[-1], keepdims=keep)
    return w("Sub", "x", mean if keep else w("Unsqueeze", mean, np.array([2], dtype=np.int64)))


def variance(w, c, square):
    return w("ReduceMean", w("Pow", c, 2.0) if square == "pow" else w("Mul", c, c), axes=[-1], keepdims=1)


LAYER_NORMS = {
    "pow": lambda w, c: w("Div", c, w("Sqrt", w("Add", variance(w, c, "pow"), F(1e-5)))),
    "mul": lambda w, c: w("Div", c, w("Sqrt", w("Add", F(1e-5), variance(w, c, "mul")))),
    "reciprocal": lambda w, c: w("Mul", c, w("Reciprocal", w("Sqrt", w("Add", variance(w, c, "mul"), F(1e-5))))),
    "rsqrt": lambda w, c: w("Mul", w("Pow", w("Add", variance(w, c, "pow"), F(1e-5)), -0.5), c),
}


@pytest.mark.parametrize("form", LAYER_NORMS)
@pytest.mark.parametrize("keep", [0, 1])
def test_layer_norm(form, keep):
    graph = recognised(lambda w: LAYER_NORMS[form](w, centred(w, keep)))
    assert kinds(graph) == ["LayerNorm"]
    assert graph.nodes[-1].axes == (2,)
    assert graph.nodes[-1].eps == float(F(1e-5))


@pytest.mark.parametrize("form", LAYER_NORMS)
def test_rms_norm(form):
    graph = recognised(lambda w: LAYER_NORMS[form](w, w("Add", "x", 0.5)))
    assert kinds(graph) == ["AddConstant", "RMSNorm"]


def test_a_norm_over_another_axis_than_the_mean_is_no_layer_norm():
    def build(w):
        c = w("Sub", "x", w("ReduceMean", "x", axes=[1], keepdims=1))
        return LAYER_NORMS["pow"](w, c)

    assert "LayerNorm" not in kinds(recognised(build))


def test_norms():
    assert kinds(recognised(lambda w: w("Sqrt", w("ReduceSum", w("Mul", "x", "x"), np.array([1]))))) == ["ReduceL2"]
    halves = recognised(
        lambda w: w("Sqrt", w("Add", w("Pow", w("Gather", "x", np.array(0), axis=1), 2.0),
                              w("Pow", w("Gather", "x", np.array(2), axis=1), 2.0))))  # fmt: skip
    assert kinds(halves)[-1] == "ReduceL2"


def test_softmax():
    def build(w):
        power = w("Exp", w("Sub", "x", w("ReduceMax", "x", axes=[-1], keepdims=1)))
        return w("Div", power, w("ReduceSum", power, np.array([-1])))

    assert kinds(recognised(build)) == ["Softmax"]
    plain = recognised(lambda w: (lambda e: w("Div", e, w("ReduceSum", e, np.array([1]))))(w("Exp", "x")))
    assert kinds(plain) == ["Softmax"]
    assert plain.nodes[-1].axis == 1


@pytest.mark.parametrize("first", ["Max", "Min"])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_max_min_of_two_halves(first, axis):
    def build(w):
        a = w("Slice", "x", np.array([0]), np.array([2]), np.array([2]))
        b = w("Slice", "x", np.array([2]), np.array([4]), np.array([2]))
        second = "Min" if first == "Max" else "Max"
        return w("Concat", w(first, a, b), w(second, b, a), axis=axis)

    found = kinds(recognised(build))
    assert "Sort" in found
    assert "Maximum" not in found


@pytest.mark.parametrize("axis", [2, 3])
def test_max_min_of_stacked_pairs(axis):
    """Both interleavings: (max, min) as a new axis in the middle or at the end, then flattened."""

    def build(w):
        a = w("Slice", "x", np.array([0]), np.array([4]), np.array([2]), np.array([2]))
        b = w("Slice", "x", np.array([1]), np.array([4]), np.array([2]), np.array([2]))
        parts = [w("Unsqueeze", w(operator, a, b), np.array([axis])) for operator in ("Max", "Min")]
        return w("Reshape", w("Concat", *parts, axis=axis), np.array([1, 3, 4]))

    found = kinds(recognised(build))
    assert "Sort" in found
    assert "Maximum" not in found


@pytest.mark.parametrize("first", ["ReduceMax", "ReduceMin"])
def test_max_min_of_an_axis_of_two(first):
    def build(w):
        pairs = w("Reshape", "x", np.array([1, 3, 2, 2]))
        second = "ReduceMin" if first == "ReduceMax" else "ReduceMax"
        return w("Concat", *(w(o, pairs, axes=[3], keepdims=0) for o in (first, second)), axis=2)

    found = kinds(recognised(build))
    assert "Sort" in found
    assert "ReduceMax" not in found


def test_intermediate_values_that_are_read_elsewhere_stay():
    graph = recognised(lambda w: (lambda s: w("Concat", w("Mul", "x", s), s, axis=1))(w("Sigmoid", "x")))
    assert sorted(kinds(graph)) == ["Concat", "sigmoid", "silu"]


def test_a_graph_without_patterns_is_unchanged():
    w = Writer()
    graph = w.graph(w("Relu", w("MatMul", "x", np.ones((4, 2), dtype=F))), [1, 4]).graph
    assert recognise(graph).digest == graph.digest


def where(w, comparison, p, q, a="x", b=0.0):
    return w("Where", w(comparison, a, b), p, q)


SELECTIONS = {
    "relu": (lambda w: where(w, "Greater", "x", 0.0), ["relu"]),
    "relu from below": (lambda w: where(w, "Less", 0.0, "x"), ["relu"]),
    "relu turned around": (lambda w: where(w, "GreaterOrEqual", 0.0, "x", a=0.0, b="x"), ["relu"]),
    "leaky relu": (lambda w: where(w, "GreaterOrEqual", "x", w("Mul", "x", 0.1)), ["leaky_relu"]),
    "steeper below": (lambda w: where(w, "LessOrEqual", w("Mul", "x", 3.0), "x"), ["leaky_relu"]),
    "steeper above": (lambda w: where(w, "Greater", w("Mul", "x", 3.0), "x"), ["MulConstant", "leaky_relu", "MulConstant"]),
    "abs": (lambda w: where(w, "Less", w("Neg", "x"), "x"), ["abs"]),
    "scaled relu": (lambda w: where(w, "Greater", w("Mul", "x", 2.5), 0.0), ["relu", "MulConstant"]),
    "negative part": (lambda w: where(w, "Greater", 0.0, "x"), ["clip"]),
    "ratio of slopes": (lambda w: where(w, "Greater", w("Mul", "x", 2.0), w("Mul", "x", 0.5)), ["leaky_relu", "MulConstant"]),
    "clip below": (lambda w: where(w, "Greater", "x", 1.5, b=1.5), ["clip"]),
    "clip above": (lambda w: where(w, "Greater", -1.5, "x", b=-1.5), ["clip"]),
    "maximum": (lambda w: (lambda y: where(w, "Greater", "x", y, b=y))(w("Sin", "x")), ["sin", "Maximum"]),
    "minimum": (lambda w: (lambda y: where(w, "Less", "x", y, b=y))(w("Sin", "x")),
                ["sin", "MulConstant", "MulConstant", "Maximum", "MulConstant"]),
}  # fmt: skip


@pytest.mark.parametrize("form", SELECTIONS)
def test_selections_without_jumps(form):
    build, expected = SELECTIONS[form]
    assert kinds(recognised(build)) == expected


JUMPS = {
    "an edge that the pieces do not meet": lambda w: where(w, "Greater", "x", 0.0, b=1.0),
    "pieces that differ at the edge": lambda w: where(w, "Greater", w("Add", "x", 1.0), "x"),
    "the smaller above": lambda w: (lambda y: where(w, "Greater", w("Mul", "x", 0.3), y, b=y))(w("Sin", "x")),
    "equality": lambda w: w("Where", w("Equal", "x", 0.0), 1.0, "x"),
    "slopes whose ratio is rounded": lambda w: where(w, "Greater", w("Mul", "x", 0.3), w("Mul", "x", 0.7)),
}


@pytest.mark.parametrize("form", JUMPS)
def test_other_selections_stay(form):
    assert "Discontinuous" in kinds(recognised(JUMPS[form]))
