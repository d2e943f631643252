"""Quadratic bounds: the optimum to the digits, laws, derivatives, and proofs that the checker accepts or refuses."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcheck
from harness.exact import one_hidden_layer
from harness.expect import expect_close, expect_lower, expect_upper
from harness.networks import MaxMin
from lipscope import api, bound, load
from lipscope.bounds.auto import methods as by_name
from lipscope.bounds.method import Effort
from lipscope.bounds.problem import pose
from lipscope.bounds.quadratic.elimination import Infeasible, eliminate, norm_start, repaired, smallest_rho
from lipscope.bounds.quadratic.newton import Products, curvature, minimise
from lipscope.bounds.quadratic.stacked import Layer, Stacked
from lipscope.claims.claim import Claim


def he_weights(dims: tuple[int, ...], seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Gaussian weights of variance 2/in, biases of deviation 0.1, layer by layer from one stream."""
    generator = np.random.default_rng(seed)
    return [
        (generator.standard_normal((b, a)) * np.sqrt(2 / a), 0.1 * generator.standard_normal(b))
        for a, b in pairwise(dims)
    ]


def he_network(dims: tuple[int, ...], seed: int = 0, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight, shift in he_weights(dims, seed):
        layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(shift))
        layers += [layer, act()]
    return nn.Sequential(*layers[:-1]).eval()


def chain(dims: tuple[int, ...], seed: int = 0, slopes: tuple[float, float] = (0.0, 1.0)) -> Stacked:
    weights = [w for w, _ in he_weights(dims, seed)]
    layers = tuple(
        Layer({k: w}, np.full(len(w), slopes[0]), np.full(len(w), slopes[1])) for k, w in enumerate(weights[:-1])
    )
    return Stacked(dims[0], layers, {len(layers): weights[-1]})


# Found independently, by another implementation of a barrier method, to 1e-7 relative; the digits given are certain.
OPTIMA = {
    (16, 12, 1): 1.886317025, (64, 32, 32, 1): 3.627624, (10, 50, 50, 5): 7.918333, (10, 30, 30, 30, 30, 30, 5): 42.972916,
    (10, *[16] * 20, 5): 121067.44,
}  # fmt: skip


@pytest.mark.parametrize("dims", OPTIMA, ids=lambda d: f"{d[0]}-{len(d) - 2}x{d[1]}-{d[-1]}")
def test_the_optimum_is_reached_and_certified(dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "LOWER_SHARE", 1e-3)  # the lower end is not what this is about
    model = load(he_network(dims), input_shape=(dims[0],))
    result = bound(model, "l2", method="lipsdp", budget=200)
    assert result.upper.status == "certified", result.upper
    assert result.upper.method == "lipsdp"
    expect_close(result.upper.value, OPTIMA[dims], 5e-7, str(dims))
    methods = ("eclipse", "eclipse-fast", "product")
    problem = pose(model.graph, Claim())
    others = [by_name(m)[0].run(problem, Effort()).value for m in methods]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise([result.upper.value, *others])), others


def test_one_hidden_layer_meets_the_enumeration() -> None:
    """Where all patterns are reachable and the optimum is a pattern, the bound is exact."""
    (first, _), (second, _) = he_weights((16, 12, 1))
    exact = one_hidden_layer(first, second, (0.0, 1.0), "l2")
    result = bound(load(he_network((16, 12, 1)), input_shape=(16,)), "l2", method="lipsdp", budget=10)
    expect_upper(result.upper.value, exact.lo)
    expect_close(result.upper.value, exact.hi, 1e-7)
    expect_lower(result.lower, exact.hi)


class Scalar(nn.Module):
    """`relu(x + 1) - relu(x)`, of slope 1, or `relu(x) +- relu(-x)`: bounds 1 and 2."""

    def __init__(self, weights: list[float], shifts: list[float], signs: list[float]) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 2).double(), nn.Linear(2, 1, bias=False).double()
        with torch.no_grad():
            self.inner.weight.copy_(torch.tensor(weights)[:, None])
            self.inner.bias.copy_(torch.tensor(shifts))
            self.outer.weight.copy_(torch.tensor(signs)[None])

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(x)))


@pytest.mark.parametrize(
    ("weights", "shifts", "signs", "exact", "best"),
    [
        ([1.0, 1.0], [1.0, 0.0], [1.0, -1.0], 1.0, 1.0),  # coupled multipliers would "prove" 0 here
        ([1.0, -1.0], [0.0, 0.0], [1.0, 1.0], 1.0, 1.0),
        ([1.0, -1.0], [0.0, 0.0], [1.0, -1.0], 1.0, 2.0),  # an unreachable pattern: the bound cannot see it
    ],
)
def test_two_units(weights: list[float], shifts: list[float], signs: list[float], exact: float, best: float) -> None:
    result = bound(load(Scalar(weights, shifts, signs).eval(), input_shape=(1,)), "l2", method="lipsdp", budget=5)
    assert result.upper.status == "certified"
    expect_upper(result.upper.value, exact)
    expect_close(result.upper.value, best, 1e-6)


@pytest.mark.parametrize("slopes", [(0.0, 1.0), (0.2, 1.0), (-0.129, 1.129), (-1.0, 1.0), (0.0, 3.0)])
def test_derivatives_against_finite_differences(slopes: tuple[float, float]) -> None:
    network = chain((3, 4, 5, 2), 1, slopes)
    values = norm_start(network, 1.3)
    rho = 1.5 * smallest_rho(network, values)

    def products(point: np.ndarray) -> Products:
        return Products(network, np.linalg.inv(network.matrix(point[0], point[1:])))

    def objective(point: np.ndarray) -> float:
        return -np.linalg.slogdet(network.matrix(point[0], point[1:]))[1]

    point = np.concatenate([[rho], values])
    at = products(point)
    hessian = curvature(network, at, at)
    for i in range(len(point)):
        step = 1e-5 * point[i]
        up, down = point.copy(), point.copy()
        up[i] += step
        down[i] -= step
        slope = (objective(up) - objective(down)) / (2 * step)
        assert -at.traces[i] == pytest.approx(slope, rel=1e-5, abs=1e-8)
        change = (products(down).traces - products(up).traces) / (2 * step)
        np.testing.assert_allclose(hessian[i], change, rtol=1e-4, atol=1e-6 * abs(hessian).max())


def test_elimination_is_the_schur_complement_of_the_stacked_matrix() -> None:
    network = chain((3, 4, 5, 2), 2, (-0.2, 1.1))
    values = norm_start(network, 1.2)
    left, _ = eliminate(network, lambda k, inner: values[network.units_of(k)])
    matrix = network.matrix(0.0, values)
    schur = matrix[:3, 3:] @ np.linalg.solve(matrix[3:, 3:], matrix[3:, :3]) - matrix[:3, :3]
    np.testing.assert_allclose(left, schur, rtol=1e-9, atol=1e-9)
    with pytest.raises(Infeasible):
        eliminate(network, lambda k, inner: values[network.units_of(k)] * 1e-3)
    rho, enlarged = repaired(network, values * 0.5)
    assert np.isfinite(rho)
    expect_close(smallest_rho(network, enlarged), rho, 1e-12)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=2), st.integers(0, 5))
def test_scaling_layers_against_each_other_changes_nothing(factors: list[float], seed: int) -> None:
    network = chain((4, 5, 5, 2), seed)
    a, b = factors
    reads = [network.layers[0].reads[0] * a, network.layers[1].reads[1] * b]
    layers = tuple(
        Layer({k: w}, layer.lower, layer.upper) for k, (w, layer) in enumerate(zip(reads, network.layers, strict=True))
    )
    scaled = Stacked(4, layers, {2: network.output[2] / (a * b)})
    values = []
    for n in (network, scaled):
        start = norm_start(n)
        values.append(minimise(n, 1.05 * smallest_rho(n, start), start)[-1].rho)
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_groups_share_a_multiplier() -> None:
    torch.manual_seed(2)

    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], -1, 3).sort(-1, descending=True).values.reshape(x.shape)

    for module in (
        nn.Sequential(nn.Linear(5, 9), Sorted(), nn.Linear(9, 9), Sorted(), nn.Linear(9, 2)).double(),
        nn.Sequential(nn.Linear(5, 8), MaxMin(), nn.Linear(8, 8), MaxMin(), nn.Linear(8, 1)).double(),
    ):
        model = load(module.eval(), input_shape=(5,))
        result = bound(model, "l2", method="lipsdp", budget=8)
        product = bound(model, "l2", method="product", budget=8, check=False)
        assert result.upper.status == "certified", result.upper
        assert result.upper.value < 0.95 * product.upper.value
        expect_upper(result.upper.value, result.lower)


def test_a_local_bound_is_not_above_the_global_one() -> None:
    model = load(he_network((6, 12, 12, 2), 5), input_shape=(6,))
    everywhere = bound(model, "l2", method="lipsdp", budget=5, check=False)
    for radius in (0.02, 0.1, 0.5):
        box = bound(model, "l2", f"box:{0.2 - radius},{0.2 + radius}", method="lipsdp", budget=5)
        assert box.upper.status == "certified", box.upper
        expect_lower(box.upper.value, everywhere.upper.value * (1 + 1e-6))
        expect_upper(box.upper.value, box.lower)


ILL = {
    "tiny": (1e-6, 1e-6, 1e-6), "huge": (1e6, 1e6, 1e6), "mixed": (1e6, 1e-6, 1e6), "falling": (1e6, 1.0, 1e-6),
}  # fmt: skip


@pytest.mark.parametrize("name", [*ILL, "zero middle", "dead units", "duplicates", "low rank", "positive", "one unit"])
def test_odd_weights_are_certified(name: str) -> None:
    network = he_network((5, 6, 6, 3), 3)
    layers = [network[0], network[2], network[4]]
    with torch.no_grad():
        for layer, factor in zip(layers, ILL.get(name, (1.0, 1.0, 1.0)), strict=True):
            layer.weight *= factor
        if name == "zero middle":
            layers[1].weight.zero_()
        if name == "dead units":
            layers[0].weight[:3] = 0
        if name == "duplicates":
            layers[1].weight[:] = layers[1].weight[:1]
        if name == "low rank":
            layers[1].weight.copy_(layers[1].weight[:, :1] @ layers[1].weight[:1])
        if name == "positive":
            for layer in layers:
                layer.weight.abs_()
    if name == "one unit":
        network = he_network((3, 1, 1, 2), 3)
    model = load(network, input_shape=(network[0].in_features,))
    result = bound(model, "l2", method="lipsdp", budget=5)
    assert result.upper.status == "certified", result.upper
    expect_upper(result.upper.value, result.lower)
    if name == "positive":  # all slopes 1 is the worst pattern, and it is seen
        matrix = layers[2].weight @ layers[1].weight @ layers[0].weight
        expect_close(result.upper.value, float(torch.linalg.matrix_norm(matrix.detach(), 2)), 1e-6)


def tampered(folder: Path, change) -> lipcheck.Verdict:
    """The verdict after an edit of proof.json whose digests are put right again."""
    proof = json.loads((folder / "proof.json").read_text())
    change(proof)
    content = json.dumps(proof).encode()
    (folder / "proof.json").write_bytes(content)
    index = json.loads((folder / "bundle.json").read_text())
    index["files"]["proof.json"] = hashlib.sha256(content).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(index))
    return lipcheck.check(folder)


def put(folder: Path, proof: dict, values: np.ndarray) -> dict[str, str]:
    """Store an array in a bundle and list it."""
    head = f"{values.dtype.str[1:]}:{','.join(map(str, values.shape))}:".encode()
    digest = hashlib.sha256(head + values.tobytes()).hexdigest()
    np.save(folder / "arrays" / f"{digest}.npy", values)
    index = json.loads((folder / "bundle.json").read_text())
    content = (folder / "arrays" / f"{digest}.npy").read_bytes()
    index["files"][f"arrays/{digest}.npy"] = hashlib.sha256(content).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(index))
    return {"array": digest}


@pytest.mark.parametrize(
    "kind",
    ["smaller norm", "multipliers times 0.9", "negative", "missing node", "extra node", "other start", "wrong shape"],
)
def test_tampered_multipliers(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "bundle"
    result = bound(load(he_network((6, 8, 8, 2), 1), input_shape=(6,)), "l2", method="lipsdp", budget=5).save(folder)
    assert result.upper.status == "certified"

    def change(proof: dict) -> None:
        (step,) = proof["steps"]
        stored = step["evidence"]["multipliers"]
        node = sorted(stored)[0]
        values = np.load(folder / "arrays" / f"{stored[node]['array']}.npy")
        if kind == "smaller norm":
            step["norm"] = {"float": (result.upper.value * (1 - 1e-5)).hex()}
        if kind == "multipliers times 0.9":
            stored[node] = put(folder, proof, values * 0.9)
        if kind == "negative":
            stored[node] = put(folder, proof, -values)
        if kind == "missing node":
            del stored[node]
        if kind == "extra node":
            stored["1"] = stored[node]
        if kind == "other start":
            step["from"] = 2
        if kind == "wrong shape":
            stored[node] = put(folder, proof, values[:-1])

    verdict = tampered(folder, change)
    assert verdict.upper["status"] == "rejected"
    assert not verdict.accepted
