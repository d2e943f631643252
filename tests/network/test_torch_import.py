"""Whole modules: what is called counts, not what is declared; names; blocks; what has to be refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipscope.claims.errors import ModelError, UnsupportedError, UsageError
from lipscope.network import nodes as n
from lipscope.network.load import torch_export
from lipscope.network.load.torch_export import from_exported, from_module, list_operations_torch
from lipscope.network.load.torch_fx import trace_symbolically
from lipscope.network.load.torch_walk import Walk
from lipscope.network.nodes import Elementwise
from network.torch_cases import agrees, calls, compare, shake


def linear(weight, bias=True) -> nn.Linear:
    matrix = torch.as_tensor(weight, dtype=torch.float64)
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias).double()
    with torch.no_grad():
        layer.weight.copy_(matrix)
        if bias:
            layer.bias.zero_()
    return layer


def slope(module: nn.Module, shape=(1,)) -> np.ndarray:
    """The product of the matrices of an affine or everywhere active network, from its graph alone."""
    graph = from_module(module.eval(), shape).graph
    from lipscope.rules.graph_value import evaluate_graph

    x = torch.full((1, graph.input_size), 3.0, dtype=torch.float64)
    return (
        torch.autograd.functional.jacobian(lambda v: evaluate_graph(graph, v), x).reshape(-1, graph.input_size).numpy()
    )


# ------------------------------------------------------------------------------------- constructs that mislead


def test_batch_norm_counts():
    norm = nn.BatchNorm1d(1).double()
    nn.init.constant_(norm.weight, 20.0)
    jacobian = slope(nn.Sequential(linear([[1.0]]), norm, nn.ReLU(), linear([[1.0]])))
    assert jacobian == pytest.approx(20 / np.sqrt(1 + 1e-5), rel=1e-15)


def test_skip_connections_count():
    assert slope(calls(lambda m, x: x + m.b(F.relu(m.a(x))), a=linear([[0.1]]), b=linear([[0.1]]))) == pytest.approx(
        1.01
    )


def test_convolutions_count():
    conv = nn.Conv2d(1, 1, 1).double()
    nn.init.constant_(conv.weight, 20.0)
    nn.init.zeros_(conv.bias)
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear(np.eye(4)), nn.ReLU(), linear([[1.0] * 4]))
    assert np.linalg.norm(slope(model, (1, 2, 2))) == pytest.approx(40)


def test_slopes_of_activations_are_the_layers_own():
    graph = from_module(nn.Sequential(nn.LeakyReLU(3), nn.ELU(4)).eval(), (2,)).graph
    assert [node.argument for node in graph.nodes[1:]] == [{"negative_slope": 3.0}, {"alpha": 4.0}]


def test_order_of_calls_counts_not_that_of_declaration():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = linear(np.diag([2, 0.1]))
            self.inp = linear([[0.0, 1], [1, 0]])
            self.mid = linear(np.diag([3, 0.1]))

        def forward(self, x):
            return self.out(self.mid(self.inp(x)))

    assert np.linalg.norm(slope(Model(), (2,)), 2) == pytest.approx(6)
    graph = from_module(Model().eval(), (2,)).graph
    assert [node.name for node in graph] == ["input", "inp", "mid", "out"]


def test_functional_code_between_layers_counts():
    model = calls(lambda m, x: m.b(3 * F.relu(m.a(x))), a=linear([[1.0]]), b=linear([[1.0]]))
    assert slope(model) == pytest.approx(3)
    assert [node.name for node in from_module(model, (1,)).graph] == ["input", "a", "relu", "mul", "b"]


def test_a_layer_that_is_called_three_times_counts_three_times():
    model = calls(lambda m, x: m.b(m.a(m.a(m.a(x)))), a=linear([[2.0]]), b=linear([[2.0]]))
    assert slope(model) == pytest.approx(16)
    assert [node.name for node in from_module(model, (1,)).graph] == ["input", "a", "a", "a", "b"]


def test_layers_without_bias_and_of_zeros():
    assert slope(nn.Sequential(linear([[2.0]], bias=False), nn.ReLU(), linear([[0.0]]))) == 0
    assert slope(linear([[2.0]])) == 2


# -------------------------------------------------------------------------------------------------------- blocks


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1)
        )
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        y = self.body(x)
        y += x
        return F.relu(y * self.gain, inplace=True)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 + 2 * i, 2, 3, padding=1) for i in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, F.silu(layer(x))], 1)
        return x


class Mobile(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 6, 1, bias=False)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6, stride=2)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Hardsigmoid()
        )

    def forward(self, x):
        x = self.depth(F.relu6(self.expand(x)))
        return x * self.squeeze(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, 2, c // 2).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-2, -1) / (c // 2) ** 0.5 + self.mask[:t, :t], -1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(b, t, c))


@pytest.mark.parametrize(
    ("block", "shape"),
    [(Residual(), (3, 6, 6)), (Dense(), (3, 6, 6)), (Mobile(), (3, 6, 6)), (Attention(), (5, 8)),
     (nn.Transformer(8, 2, 1, 1, 16, batch_first=True).encoder, (5, 8))],
    ids=["residual", "dense", "mobile", "attention", "transformer"],
)  # fmt: skip
def test_block(block, shape):
    for buffer in (b for name, b in block.named_buffers() if "mask" not in name and b.is_floating_point()):
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    agrees(block.double().eval(), shape)


def test_names_are_the_users():
    model = nn.Sequential(Residual(), nn.Flatten(), nn.Linear(108, 2)).eval()
    names = [node.name for node in from_module(model, (3, 6, 6)).graph]
    assert names == ["input", "0.body.0", "0.body.1", "0.body.2", "0.body.3", "0.add", "0.mul", "0.relu", "1", "2"]


def test_several_inputs_and_outputs_keep_their_order():
    model = calls(lambda m, x, y: (m.a(x) - y, x.sin()), a=nn.Linear(3, 2))
    graph = compare(from_module(model, [(3,), (2,)]))
    assert (graph.input_shapes, graph.output_shapes) == (((3,), (2,)), ((2,), (3,)))
    assert graph.output_size == 5


# ----------------------------------------------------------------------------------------------- in-place writes


def _write_to_slice(x):
    y = x.clone()
    y[:, 1:3] = x[:, :2] * 2
    y[:, 0].mul_(3)
    return y


def _read_after_write(x):
    y = x * 2
    z = y.view(2, 3)
    y.add_(1)
    return z.sum(1, keepdim=True)


def _fill_constant(x):
    y = torch.zeros(1, 6, dtype=x.dtype)
    y[:, ::2] = x[:, :3]
    y[:, 1] += 1
    return y


def _write_input(x):
    x += 1
    return x.relu_() + x


def _dropped_alias(x):
    y = F.dropout(x * 2, training=False)
    y += 1
    return y * x


@pytest.mark.parametrize("function", [_write_to_slice, _read_after_write, _fill_constant, _write_input, _dropped_alias])
def test_writes_in_place_mean_what_they_do(function):
    agrees(calls(function), (6,))


def test_a_written_operand_stands_for_its_new_value():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.sin.default, (x,))
    graph.call_function(torch.ops.aten.relu_.default, (y,))
    graph.output(graph.call_function(torch.ops.aten.add.Tensor, (y, 1)))
    walk = Walk(narrow=False)
    (output,) = walk.run(torch.fx.GraphModule({}, graph), walk.lowering.inputs([(1, 3)]))
    kinds = [n.kind if not isinstance(n, Elementwise) else n.function for n in walk.lowering.nodes]
    assert kinds == ["Input", "sin", "relu", "AddConstant"]
    assert walk.lowering.nodes[output.index].inputs == (2,)


# -------------------------------------------------------------------------------------------------------- weights


def test_weights_keep_the_bits_of_their_own_type():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    graph = from_module(model, (3,)).graph
    assert graph.nodes[1].weight.dtype == np.float32
    assert np.array_equal(graph.nodes[1].weight, model[0].weight.detach().numpy())
    assert from_module(model.double(), (3,)).graph.nodes[1].weight.dtype == np.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_exactly(dtype):
    model = nn.Linear(3, 3).to(dtype).eval()
    source = from_module(model, (3,))
    weight = source.graph.nodes[1].weight
    assert weight.dtype == np.float32
    assert np.array_equal(weight, model.weight.detach().float().numpy())
    compare(source)


def test_parametrised_weights_are_the_ones_that_the_module_computes():
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 2, 2)),
        nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
    ).eval()  # fmt: skip
    graph = compare(
        from_module(calls(lambda m, x: m.c(m.b(m.a(x).unsqueeze(1))), a=model[0], b=model[1], c=model[2]).float(), (4,))
    )
    weights = [node.weight for node in graph if isinstance(node, n.Dense | n.Conv)]
    for weight, layer in zip(weights, model, strict=True):
        assert weight.dtype == np.float32
        assert np.array_equal(weight, layer.weight.detach().numpy())
        assert hasattr(layer, "parametrizations"), "the user's module was changed"


def test_old_spectral_and_weight_norm():
    with pytest.warns(FutureWarning, match="weight_norm"):
        second = nn.utils.weight_norm(nn.Linear(4, 2))
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), second)
    model(torch.ones(1, 4))
    compare(from_module(model.eval(), (4,)), tolerance=1e-6)


def test_the_users_module_is_not_changed():
    model = Residual().eval()
    before = {name: (t.dtype, t.clone(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()}
    from_module(model, (3, 6, 6))
    for name, tensor in model.state_dict(keep_vars=True).items():
        dtype, value, grad = before[name]
        assert (tensor.dtype, tensor.requires_grad) == (dtype, grad)
        assert torch.equal(tensor, value)


def test_rms_norm_without_eps_takes_that_of_the_users_precision():
    model = nn.Sequential(nn.RMSNorm(4)).eval()
    (norm,) = [node for node in from_module(model, (4,)).graph if isinstance(node, n.RMSNorm)]
    assert norm.eps == torch.finfo(torch.float32).eps
    with pytest.raises(UnsupportedError, match="eps"):
        from_module(calls(lambda m, x: F.rms_norm(m.a(x), (4,)), a=nn.Linear(4, 4)).float(), (4,))


def test_a_module_that_computes_partly_in_single_precision_is_compared_in_single():
    source = from_module(calls(lambda m, x: m.a(x.float().to(x.dtype)), a=nn.Linear(4, 4)), (4,))
    assert source.dtype == "float32"
    compare(source, 1e-6)
    source = from_module(calls(lambda m, x: m.a(x.float()), a=nn.Linear(4, 4)).float(), (4,))
    assert source.dtype == "float32"
    compare(source, 1e-6)


# ------------------------------------------------------------------------------------------------ what is refused


def test_train_mode_is_refused():
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        from_module(nn.Linear(2, 2), (2,))
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2)).eval()
    model[1].train()
    with pytest.raises(ModelError, match="'1'"):
        from_module(model, (2,))
    model.eval()
    model[0].train()
    from_module(model, (2,))
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        list_operations_torch(nn.Linear(2, 2), (2,))


class Branching(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class Steered(nn.Module):
    def forward(self, x):
        return x * x.sum().item()


@pytest.mark.parametrize("model", [Branching(), Steered()])
def test_control_flow_on_values_is_refused_in_words(model):
    with pytest.raises((ModelError, UnsupportedError)) as caught:
        from_module(model.eval(), (3,))
    assert "depend on the values" in str(caught.value) or "steers the program" in str(caught.value)


def test_control_flow_on_shapes_is_followed():
    agrees(calls(lambda x: x * 2 if x.shape[1] > 2 else x), (3,))


def test_wrong_input_shape():
    with pytest.raises(ModelError, match="check the input shape"):
        from_module(nn.Linear(3, 2).eval(), (4,))
    for shape in ((0, 3), (-1,), "3", 3, None):
        with pytest.raises(UsageError):
            from_module(nn.Linear(3, 2).eval(), shape)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_modules():
    model = nn.Linear(2, 2).eval()
    assert from_module(torch.compile(model), (2,)).graph.digest == from_module(model, (2,)).graph.digest
    with pytest.raises(ModelError, match=r"model\.eval\(\)"):
        from_module(nn.DataParallel(nn.Linear(2, 2)).eval().train(), (2,))
    with pytest.raises(ModelError, match="TorchScript"):
        from_module(torch.jit.trace(nn.Linear(2, 2).eval(), torch.ones(1, 2)), (2,))


def test_complex_weights_are_refused():
    model = nn.Linear(2, 2).eval()
    model.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ModelError, match="phase"):
        from_module(model, (2,))


# ------------------------------------------------------------------------------------------------- second tracer


def test_the_second_tracer_gives_the_same_graph(monkeypatch):
    model = shake(nn.Sequential(Mobile(), Residual4(), nn.Flatten(), nn.Linear(54, 2))).eval()
    first = compare(from_module(model, (3, 6, 6)))

    def failing(*_: object) -> None:
        raise RuntimeError("no export")

    monkeypatch.setattr(torch_export, "_export", failing)
    second = compare(from_module(model, (3, 6, 6)))
    assert [node.name for node in first] == [node.name for node in second]
    assert first.digest == second.digest


class Residual4(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x):
        return F.relu_(self.conv(x)) + x


class Overlapping(nn.Module):
    def forward(self, x):
        return _read_after_write(x)


def test_the_second_tracer_refuses_branches_and_overlapping_writes():
    with pytest.raises(torch.fx.proxy.TraceError):
        trace_symbolically(Branching().eval(), [(1, 3)])
    with pytest.raises(ModelError, match="write into"):
        trace_symbolically(Overlapping().eval(), [(1, 6)])


# ---------------------------------------------------------------------------------------------- exported programs


def exported(module: nn.Module, *shape: int, dtype=torch.float32, **options) -> torch.export.ExportedProgram:
    with torch_export.quiet():
        return torch.export.export(module.eval(), (torch.randn(*shape, dtype=dtype),), **options)


def test_exported_program_in_its_own_precision():
    source = from_exported(exported(Residual(), 1, 3, 6, 6))
    assert source.dtype == "float32"
    compare(source, 1e-5)
    source = from_exported(exported(Residual().double(), 1, 3, 6, 6, dtype=torch.float64))
    assert source.dtype == "float64"
    compare(source)


def test_dynamic_batch_is_resolved_to_one():
    program = exported(
        nn.Sequential(nn.Flatten(), nn.Linear(6, 2)), 3, 2, 3, dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    source = from_exported(program)
    assert (source.run_shapes, source.graph.input_shapes, source.graph.output_shapes) == (
        ((1, 2, 3),),
        ((2, 3),),
        ((2,),),
    )
    compare(source, 1e-5)


def test_fixed_batch_and_open_shapes_of_programs_are_refused():
    with pytest.raises(ModelError, match="batch"):
        from_exported(exported(nn.Linear(3, 2), 4, 3))
    whole = from_exported(exported(nn.Linear(3, 2), 4, 3), (4, 3))
    assert whole.graph.input_shapes == ((4, 3),)
    program = exported(nn.ReLU(), 2, 3, dynamic_shapes=({1: torch.export.Dim("length")},))
    with pytest.raises(ModelError, match=r"(?s)batch|fixed shape"):
        from_exported(program)
    program = exported(nn.ReLU(), 1, 3, dynamic_shapes=({1: torch.export.Dim("length")},))
    with pytest.raises(ModelError, match="fixed shape"):
        from_exported(program)
    assert from_exported(program, (5,)).run_shapes == ((1, 5),)
    with pytest.raises(ModelError, match="fits"):
        from_exported(program, (5, 2))


def test_integer_inputs_are_refused():
    with torch_export.quiet():
        program = torch.export.export(nn.Embedding(5, 2).eval(), (torch.zeros(1, 3, dtype=torch.long),))
    with pytest.raises(ModelError, match="real numbers"):
        from_exported(program)


def test_a_program_that_counts_its_calls_is_evaluated_afresh_each_time():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return x * self.calls

    source = from_exported(exported(Counting(), 1, 3))
    x = np.ones((1, 3))
    assert np.array_equal(source.run([x])[0], source.run([x])[0])


def test_list_operations_of_a_program():
    listed = list_operations_torch(exported(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), 1, 3))
    assert [(o.operator, o.layer, o.shape, o.status) for o in listed] == [
        ("linear", "0", (1, 2), "supported"), ("relu", "1", (1, 2), "supported"),
    ]  # fmt: skip
