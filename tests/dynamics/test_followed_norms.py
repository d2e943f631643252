"""Norms of layers: estimates from below, bounds from above, and the graph that is filled with later weights."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipscope.api import load
from lipscope.claims.errors import ModelError, UnsupportedError
from lipscope.claims.quantity import Reading
from lipscope.dynamics import layers as layers_module
from lipscope.dynamics.factors import list_factors, log_product
from lipscope.dynamics.layers import WatchedLayer, perturbation_bound, watched_layers
from lipscope.dynamics.quantities import layer_norms
from lipscope.dynamics.quantities.layer_norms import LayerNorms, NormProofs, NormRenewals
from lipscope.dynamics.quantities.scene import Scene, Subject
from lipscope.dynamics.template import Template, disagreement
from lipscope.dynamics.view import View
from lipscope.network.load.torch_module import double_copy

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using padding='same' with even kernel lengths"
)  # torch says it once a process


def view_of(model: nn.Module, shape: tuple[int, ...]) -> tuple[View, list[WatchedLayer]]:
    view = View(model)
    return view, watched_layers(view, torch.zeros(2, *shape))[0]


def scene_of(view: View, layers: list[WatchedLayer], inputs: Tensor, step: int = 0) -> Scene:
    generator = torch.Generator().manual_seed(0)
    return Scene(step, view.model, inputs, None, None, generator, Subject(view, inputs, layers), "")


def matrix(layer: WatchedLayer, weight: Tensor | None = None) -> Tensor:
    """The layer's operator as a float64 matrix, column by column."""
    twin = copy.deepcopy(layer.module).double()
    with torch.no_grad():
        if weight is not None:
            twin.weight.copy_(weight)  # type: ignore[operator]
        if twin.bias is not None:
            twin.bias.zero_()  # type: ignore[operator]
        size = twin.in_features if isinstance(twin, nn.Linear) else torch.Size(layer.input_shape).numel()
        basis = torch.eye(int(size), dtype=torch.float64)
        inputs = basis if isinstance(twin, nn.Linear) else basis.reshape(-1, *layer.input_shape[1:])
        return twin(inputs).flatten(1).T


def largest(m: Tensor) -> float:
    return float(torch.linalg.svdvals(m)[0])


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 5, 5)),
    "valid": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 4)),
    "same, even kernel": (lambda: nn.Conv2d(1, 2, (2, 4), padding="same"), (1, 5, 5)),
    "stride": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 5)),
    "dilation": (lambda: nn.Conv2d(1, 2, 3, dilation=2, padding=2), (1, 6, 6)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 4)),
    "depthwise": (lambda: nn.Conv2d(3, 3, 3, padding=1, groups=3), (3, 4, 4)),
    "circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (2, 4, 5)),
    "circular, too wide": (lambda: nn.Conv2d(1, 1, 1, padding=1, padding_mode="circular"), (1, 3, 3)),
    "reflect": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), (1, 4, 4)),
    "1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 7)),
    "3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "dense": (lambda: nn.Linear(7, 4), (7,)),
    "dense on a sequence": (lambda: nn.Linear(3, 4), (5, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_norms_against_the_unrolled_operator(name: str) -> None:
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(len(name))
    module = make()
    view, (layer,) = view_of(nn.Sequential(module), shape)
    exact = largest(matrix(layer))
    followed = LayerNorms([layer])
    inputs = torch.zeros(1, *shape)
    proofs = list(NormProofs(followed, [layer]).read(scene_of(view, [layer], inputs)))
    found = {r.name: r for r in followed.read(scene_of(view, [layer], inputs))}
    for _ in range(50):
        found = {r.name: r for r in followed.read(scene_of(view, [layer], inputs))}
    assert 0.98 * exact <= found["norm"].value <= exact * (1 + 1e-5) and found["norm"].certainty == "estimate"
    if name == "reflect":
        assert not proofs and "norm_upper" not in found
        return
    upper, lower = proofs[0].value, proofs[1].value
    assert lower <= exact * (1 + 1e-12) and exact <= upper * (1 + 1e-14) and upper <= 1.02 * exact
    assert found["norm_upper"].value >= exact * (1 - 1e-14)


@pytest.mark.parametrize("name", [n for n in CONVOLUTIONS if n not in ("reflect", "circular, too wide")])
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e6]), sparse=st.booleans())
@settings(max_examples=8, deadline=None)
def test_a_change_of_the_weight_is_bounded(name: str, seed: int, scale: float, sparse: bool) -> None:
    make, shape = CONVOLUTIONS[name]
    generator = torch.Generator().manual_seed(seed)
    _, (layer,) = view_of(nn.Sequential(make()), shape)
    assert layer.spreads
    change = torch.randn(layer.weight.shape, generator=generator) * scale
    if sparse:  # one entry: the bound is attained
        change = change * torch.zeros_like(change).flatten().scatter(
            0, torch.tensor([seed % change.numel()]), 1.0
        ).view_as(change)
    exact = largest(matrix(layer, change.double()))
    bound = perturbation_bound(layer, change)
    assert bound >= exact * (1 - 1e-14)
    assert bound >= float(change.double().abs().max()) * (1 - 1e-14) or "valid" not in name
    if sparse:
        assert bound <= exact * (1 + 1e-4) + 1e-20 or "stride" in name or "dilation" in name


def test_a_tap_that_reads_an_entry_twice_is_not_bounded_by_its_norm() -> None:
    make, shape = CONVOLUTIONS["circular, too wide"]
    view, (layer,) = view_of(nn.Sequential(make()), shape)
    exact = largest(matrix(layer))
    assert not layer.spreads
    assert exact > perturbation_bound(layer, layer.weight), "this is why"
    followed = LayerNorms([layer])
    inputs = torch.zeros(1, *shape)
    list(NormProofs(followed, [layer]).read(scene_of(view, [layer], inputs)))
    with torch.no_grad():
        view.live[0].weight.mul_(1.5)  # type: ignore[index,operator,union-attr]
    (upper,) = (r.value for r in followed.read(scene_of(view, [layer], inputs)) if r.name == "norm_upper")
    assert upper == float("inf")


@pytest.mark.parametrize("name", ["plain", "stride", "groups", "circular", "dense", "dense on a sequence", "1d"])
def test_carried_bounds_are_never_below_the_norm_of_the_moment(name: str) -> None:
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(1)
    view, (layer,) = view_of(nn.Sequential(make()), shape)
    followed, inputs = LayerNorms([layer]), torch.zeros(1, *shape)
    list(NormProofs(followed, [layer]).read(scene_of(view, [layer], inputs)))
    parameter = view.live[0].weight  # type: ignore[index,union-attr]
    assert isinstance(parameter, nn.Parameter)
    for step in range(30):
        u, _, v = torch.linalg.svd(parameter.detach().flatten(1), full_matrices=False)
        with torch.no_grad():  # grow along the top direction: the bound is as tight as it gets
            parameter.add_(
                0.05 * torch.outer(u[:, 0], v[0]).view_as(parameter) if step % 2 else 0.01 * torch.randn_like(parameter)
            )
        view.refresh()
        (upper,) = (r.value for r in followed.read(scene_of(view, [layer], inputs, step)) if r.name == "norm_upper")
        assert upper >= largest(matrix(layer)) * (1 - 1e-14)


@given(seed=st.integers(0, 10**6), kind=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=60, deadline=None)
def test_the_gram_bound_of_a_change_holds_in_every_precision(seed: int, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    taps, groups, rows, columns = torch.randint(1, 6, (4,), generator=generator).tolist()
    blocks = torch.randn(taps, groups, rows, columns, generator=generator, dtype=torch.float64)
    if seed % 2:  # rank one: Gram's and the operator norm are the same number
        blocks = blocks[..., :1] * blocks[..., :1, :]
    blocks = (blocks * 10.0 ** (seed % 9 - 5)).to(kind)
    if not bool(blocks.any()):
        return
    exact = sum(float(torch.linalg.matrix_norm(tap.double(), 2).max()) for tap in blocks)
    assert layers_module._gram_bound(blocks) >= exact * (1 - 1e-15)


@given(seed=st.integers(0, 10**6), kind=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
@settings(max_examples=60, deadline=None)
def test_the_rounding_of_the_difference_itself_is_in_the_bound(seed: int, kind: torch.dtype) -> None:
    """A change of one entry, or of rank one, has no room to spare: its bound is its norm but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(1, 1) if seed % 2 else nn.Linear(4, 3)
    _, (layer,) = view_of(nn.Sequential(module), (module.in_features,))
    column, row = torch.randn(3, 1, generator=generator), torch.randn(1, 4, generator=generator)
    before = torch.randn(layer.weight.shape, generator=generator).to(kind)
    after = (before.float() * (1 + 3 * (column @ row)[: layer.weight.shape[0], : layer.weight.shape[1]])).to(kind)
    exact = largest(after.double() - before.double())
    found = perturbation_bound(layer, after - before)
    assert exact * (1 - 1e-14) <= found <= 2 * exact + 1e-3


@pytest.mark.parametrize("size", [1e-320, 1e-44, 3e38, 1e300])
def test_the_gram_bound_of_numbers_at_the_ends_of_the_range(size: float) -> None:
    for kind in (torch.float64, torch.float32):
        blocks = torch.full((1, 1, 2, 3), size, dtype=torch.float64).to(kind)
        entry = float(blocks[0, 0, 0, 0])
        if entry and math.isfinite(entry):
            assert layers_module._gram_bound(blocks) >= entry * math.sqrt(6)


@pytest.mark.parametrize("name", ["plain", "groups", "dense"])
def test_a_change_in_all_directions_is_bounded_by_less_than_its_length(name: str) -> None:
    make, shape = (lambda: nn.Linear(40, 30), (40,)) if name == "dense" else CONVOLUTIONS[name]
    torch.manual_seed(0)
    if name != "dense":
        make = lambda: nn.Conv2d(16, 16, 3, padding=1, groups=2 if name == "groups" else 1)  # noqa: E731
        shape = (16, 5, 5)
    _, (layer,) = view_of(nn.Sequential(make()), shape)
    change = torch.randn(layer.weight.shape)
    taps = change[None] if name == "dense" else change.flatten(2).movedim(2, 0)
    lengths = float(taps.flatten(1).norm(dim=1).sum())
    assert largest(matrix(layer, change.double())) <= perturbation_bound(layer, change) < 0.7 * lengths


def test_the_loosest_bound_is_proved_anew_where_its_proof_can_be_paid() -> None:
    torch.manual_seed(0)
    view, layers = view_of(nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4)), (5,))
    followed, inputs = LayerNorms(layers), torch.zeros(1, 5)
    renewals = NormRenewals(followed, layers)
    list(NormProofs(followed, layers).read(scene_of(view, layers, inputs)))
    carried = {r.layer: r.value for r in followed.read(scene_of(view, layers, inputs)) if r.name == "norm_upper"}
    assert list(renewals.read(scene_of(view, layers, inputs))) == []  # nothing has moved
    with torch.no_grad():
        for index, size in ((0, 0.3), (2, 0.2)):
            parameter = view.live[index].weight  # type: ignore[index,union-attr]
            assert isinstance(parameter, nn.Parameter)
            parameter.mul_(1 - size)
    view.refresh()
    scene = scene_of(view, layers, inputs, 7)
    before = {r.layer: r.value for r in followed.read(scene) if r.name == "norm_upper"}
    assert all(before[layer] > carried[layer] for layer in before)
    renewals.allowance = 0.0
    assert list(renewals.read(scene)) == []
    renewals.allowance = renewals.dearest
    assert {r.layer for r in renewals.read(scene)} == {"0"}  # one at a time, the loosest first
    assert {r.layer for r in renewals.read(scene)} == {"2"}
    assert list(renewals.read(scene)) == []
    after = {r.layer: (r.value, r.note) for r in followed.read(scene) if r.name == "norm_upper"}
    for layer in layers:
        exact = largest(matrix(layer))
        assert exact <= after[layer.name][0] <= 1.02 * exact and "carried from step 7" in after[layer.name][1]


def test_another_direction_that_takes_over_is_found_within_some_readings() -> None:
    """The second singular vector grows past the first, as in training: one iteration a reading lags far behind."""
    torch.manual_seed(0)
    module = nn.Linear(30, 30, bias=False)
    q, _ = torch.linalg.qr(torch.randn(30, 30))
    view, (layer,) = view_of(nn.Sequential(module), (30,))
    parameter = view.live[0].weight  # type: ignore[index,union-attr]
    assert isinstance(parameter, nn.Parameter)
    followed = LayerNorms([layer])
    for step in range(60):
        values = torch.ones(30)
        values[0], values[1] = 2.0, 1.0 + 0.1 * min(step, 20)
        with torch.no_grad():
            parameter.copy_(q @ torch.diag(values) @ q.T)
        view.refresh()
        found = {r.name: r.value for r in followed.read(scene_of(view, [layer], torch.zeros(1, 30), step))}
        assert found["norm"] <= float(values.max()) * (1 + 1e-5), step
    assert found["norm"] >= 0.999 * 3.0


def test_a_sweep_that_is_out_of_time_goes_on_with_the_other_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    view, layers = view_of(nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))), (3,))
    followed, inputs = LayerNorms(layers), torch.zeros(1, 3)
    proofs = NormProofs(followed, layers)
    monkeypatch.setattr(layer_norms, "SWEEP", 0.0)
    for seen in (["0"], ["1"], ["2"], ["3"], ["0"]):
        assert list(dict.fromkeys(r.layer for r in proofs.read(scene_of(view, layers, inputs)))) == seen


def test_half_precision_changes_are_bounded_too() -> None:
    torch.manual_seed(0)
    _, (layer,) = view_of(nn.Sequential(nn.Linear(9, 5)), (9,))
    for dtype in (torch.bfloat16, torch.float16):
        for _ in range(50):
            a, b = torch.randn(5, 9).to(dtype), torch.randn(5, 9).to(dtype)
            assert perturbation_bound(layer, a - b) >= largest(a.double() - b.double())


class Block(nn.Module):
    """A residual block with a batch normalisation, a shared layer and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.linear, self.head = nn.Linear(16, 16), nn.Linear(32, 3)
        self.scale = nn.Parameter(torch.rand(16) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(x + self.norm(self.conv(x)))
        h = nn.functional.adaptive_avg_pool2d(h, (2, 4)).flatten(1)
        g = torch.tanh(self.linear(torch.relu(self.linear(h)))) * self.scale
        return self.head(torch.cat([g, h], 1))


def shaken(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.mul_(0.5 + torch.rand(tensor.shape, generator=generator))
            tensor.add_(
                0.1 * torch.rand(tensor.shape, generator=generator)
            )  # nothing stays 0 or 1, which loading may drop
    return model


@pytest.mark.parametrize(
    "make, shape",
    [
        (Block, (2, 4, 4)),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(), nn.LayerNorm(5), nn.Linear(5, 2, bias=False)), (4,)),
        (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 2)), (4,)),
    ],
)
def test_a_filled_template_is_the_graph_of_the_model(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    template = Template(model, shape)
    for seed in range(2):
        shaken(model, seed)
        graph = template.filled(double_copy(model))
        assert graph.digest == load(double_copy(model), input_shape=shape).graph.digest
        assert disagreement(graph, double_copy(model), torch.randn(3, *shape)) < 1e-12


def test_a_template_notices_that_a_graph_is_of_other_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    template = Template(model, (4,))
    graph = template.filled(double_copy(model))
    assert disagreement(graph, double_copy(shaken(model, 1)), torch.randn(3, 4)) > 1e-3
    with pytest.raises(ModelError, match="its layers were changed"):
        template.filled(nn.Linear(4, 5).double())
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"not finite|NaN|nan"):
        template.filled(double_copy(model))


def test_weights_that_are_computed_by_the_model_leave_no_template() -> None:
    class Computes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, torch.tanh(self.raw) * 2)

    with pytest.raises((ModelError, UnsupportedError)):
        Template(Computes().eval(), (4,))


def test_layers_are_listed_in_the_order_of_the_forward_pass_with_what_is_left_out() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first, self.never = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)
            self.again = nn.Linear(4, 4)
            self.again.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.again(self.first(x)))

    view = View(Odd())
    layers, notes = watched_layers(view, torch.zeros(1, 4))
    assert [layer.name for layer in layers] == ["first", "again", "last"]
    assert any("share one weight" in note and "'first'" in note and "'again'" in note for note in notes)


def test_the_twin_shows_the_weights_of_the_moment_and_nothing_of_it_is_the_models() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.9))
    view = View(model)
    assert model.training and not view.model.training
    for a, b in itertools.product(view.model.modules(), model.modules()):
        assert a is not b
    with torch.no_grad():
        model[0].weight.add_(1.0)  # type: ignore[operator]
        model[1].running_mean.add_(2.0)  # type: ignore[operator,union-attr]
    assert not torch.equal(view.model[1].running_mean, model[1].running_mean)  # type: ignore[index,arg-type,union-attr]
    view.refresh()
    assert torch.equal(view.model[0].weight, model[0].weight)  # type: ignore[index,arg-type,union-attr]
    assert torch.equal(view.model[1].running_mean, model[1].running_mean)  # type: ignore[index,arg-type,union-attr]
    x = torch.randn(5, 3)
    expected = copy.deepcopy(model).eval()(x)
    assert torch.equal(view.model(x), expected)
    view.model.double()  # a careless reader
    assert model[0].weight.dtype == torch.float32
    assert isinstance(Reading("x", 1.0, "measured"), Reading)


def test_the_product_has_normalizations_functions_and_every_call_in_it() -> None:
    torch.manual_seed(0)
    inner = nn.Linear(6, 6)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.GELU(), inner, nn.Tanh(), inner, nn.Linear(6, 3)
    ).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -4.0, 1.0, 2.0, 0.1, 3.0]))
    view, layers = view_of(model, (4,))
    factors, inputs = list_factors(model, torch.zeros(2, 4)), torch.zeros(2, 4)
    followed = LayerNorms(layers, factors)
    for _ in range(50):
        found = {r.name: r for r in followed.read(scene_of(view, layers, inputs))}
    assert found["log_product"].value == pytest.approx(log_product(factors), abs=1e-4)


def test_without_a_chain_of_factors_there_is_no_product() -> None:
    view, layers = view_of(nn.Sequential(nn.Linear(4, 3)), (4,))
    followed = LayerNorms(layers, unknown="several outputs")
    found = {r.name: r for r in followed.read(scene_of(view, layers, torch.zeros(1, 4)))}
    assert found["log_product"].value == math.inf and "several outputs" in found["log_product"].note
