"""Proved bounds of band gains: above every attack, equal to closed forms, accepted by the checker, never fooled."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipcheck
from frequency.cases import loaded, matrix_of, noise, projector, seeded, spectral
from harness.bundle_writer import seal
from lipcheck.directions import basis as checker_basis
from lipcheck.directions import error as checker_error
from lipcheck.directions import read_directions
from lipcheck.errors import Rejected
from lipscope.certificate.bundle import write_bundle
from lipscope.claims.errors import UsageError
from lipscope.frequency.band_bounds import BandBounds, prove_band_bounds
from lipscope.frequency.bands import Bands, band_masks, custom_bands
from lipscope.frequency.basis import band_basis, cosine_table, error
from lipscope.frequency.layout import Layout
from lipscope.frequency.spectrum import graph_model
from lipscope.network.nodes import Add, Elementwise

PATIENT = 1e6
"""Seconds: results may not depend on how busy the machine is."""


def bounds(
    module: nn.Module, shape: tuple[int, ...], count: int = 3, kind: str = "square", method: str = "product"
) -> tuple[BandBounds, Bands]:
    graph, layout = loaded(module, shape)
    bands = band_masks(layout.grid, count, kind)
    return prove_band_bounds(graph, layout, bands, PATIENT, method), bands


def values(found: BandBounds) -> list[float]:
    return [r.upper.value for r in found.bands]  # type: ignore[misc]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)), (2, 4, 3),
    ),
    "strided": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Flatten()), (1, 7, 6),
    ),
    "pooled": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 2)), (1, 4, 6)),
    "relu first": (lambda: nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (1, 4, 3)),
    "signal": (lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.ELU(), nn.Flatten(), nn.Linear(10, 2)), (1, 7)),
    "table": (lambda: nn.Sequential(nn.Linear(5, 6), nn.LeakyReLU(), nn.Linear(6, 2)), (5,)),
}  # fmt: skip


class Residual(nn.Module):
    """Reads its input twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + torch.relu(self.inner(x))).flatten(1)


NETWORKS["residual"] = (Residual, (1, 4, 4))
METHOD = {"table": "eclipse-fast"}


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold_for_finite_changes_and_are_certified(name: str, tmp_path: Path) -> None:
    make, shape = NETWORKS[name]
    network = seeded(make)
    graph, layout = loaded(network, shape)
    bands = band_masks(layout.grid, 3)
    found = prove_band_bounds(graph, layout, bands, PATIENT, METHOD.get(name, "product")).checked()
    model = graph_model(graph, layout)
    x = noise(64, layout.channels, *layout.grid, seed=1)
    for b, result in enumerate(found.bands):
        assert result.upper.status == "certified", result.upper.reason
        assert result.upper.value is not None and found.total.upper.value is not None
        assert result.upper.value <= found.total.upper.value
        for size in (1e-3, 1.0, 30.0):
            h = bands.project(size * noise(*x.shape, seed=2), b)
            with torch.no_grad():
                moved = (model(x + h) - model(x)).norm(dim=1)
            # Distances are computed in float64: what is lost in the difference of values is allowed for.
            allowed = result.upper.value * h.flatten(1).norm(dim=1) * (1 + 1e-12) + 1e-13
            assert bool((moved <= allowed).all())


def test_a_linear_network_in_closed_form() -> None:
    network = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(36, 4)))
    matrix = matrix_of(network, (2, 4, 3))
    found, bands = bounds(network, (2, 4, 3), kind="round")
    exact = [spectral(matrix @ np.kron(np.eye(2), projector(bands, b))) for b in range(bands.count)]
    for value, truth in zip(values(found), exact, strict=True):
        assert truth * (1 - 1e-14) <= value <= truth * (1 + 1e-10)
    assert found.total.upper.value is not None
    assert max(values(found)) <= found.total.upper.value <= math.hypot(*values(found)) * (1 + 1e-12)


def test_a_circular_first_layer_is_its_symbol_times_the_rest() -> None:
    rest = seeded(lambda: nn.Linear(36, 2, bias=False), 1)
    first = seeded(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"))
    graph, layout = loaded(nn.Sequential(first, nn.ReLU(), nn.Flatten(), rest), (2, 4, 3))
    bands = band_masks((4, 3), 2)
    weight, kernel = first.weight.detach().numpy(), np.zeros((3, 2, 4, 3))
    for i in range(3):
        for j in range(3):
            kernel[:, :, (1 - i) % 4, (1 - j) % 3] += weight[:, :, i, j]
    symbol, after = np.fft.fft2(kernel), spectral(rest.weight.detach().numpy())
    found = prove_band_bounds(graph, layout, bands, PATIENT, "product")
    largest = [max(spectral(symbol[:, :, i, j]) for i, j in np.argwhere(mask)) for mask in bands.masks.numpy()]
    assert max(largest) > 1.01 * min(largest)
    for norm, result in zip(largest, found.bands, strict=True):
        if norm < max(largest):  # else the plain network's proof is as good
            step = result.candidate.proof.steps[0]  # type: ignore[union-attr]
            assert step.start == 0 and norm * (1 - 1e-12) <= step.norm <= norm * (1 + 1e-10)  # type: ignore[operator]
        assert norm * after * (1 - 1e-12) <= result.upper.value <= norm * after * (1 + 1e-9)  # type: ignore[operator]


def test_the_product_of_norms_obeys_the_sum_of_squares() -> None:
    found, _ = bounds(seeded(NETWORKS["conv"][0]), (2, 4, 3))
    total = found.total.upper.value
    assert total is not None
    assert max(values(found)) < total <= math.hypot(*values(found)) * (1 + 1e-12)


@pytest.mark.parametrize("method", ["product", "eclipse-fast"])
def test_bands_are_better_than_the_plain_bound(method: str) -> None:
    network = seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
    found, _ = bounds(network, (6,), method=method)
    assert found.total.upper.value is not None
    assert all(value < 0.999 * found.total.upper.value for value in values(found))


def test_a_network_that_reads_the_mean_is_blind_to_the_rest() -> None:
    network = nn.Sequential(nn.AvgPool1d(8), nn.Flatten())
    found, _ = bounds(network, (1, 8), 4)
    first, *others = values(found)
    assert abs(first - math.sqrt(1 / 8)) < 1e-10
    assert max(others) < 1e-6  # the squares of norms are resolved to rounding errors


def test_grids_too_large_for_a_basis_have_the_plain_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipscope.frequency.basis.LARGEST", 20)
    found, _ = bounds(seeded(NETWORKS["conv"][0]), (2, 4, 3))
    assert found.bands[-1].problem.claim.directions is None
    assert found.bands[-1].upper.value == found.total.upper.value


def test_where_nothing_is_bounded_no_band_is() -> None:
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * x).sum(dim=1)

    found, _ = bounds(Square(), (6,))
    found = found.checked()
    assert found.total.upper.status == "unbounded"
    assert {r.upper.status for r in found.bands} == {"no-bound"} and all(r.upper.reason for r in found.bands)


def test_bands_of_another_grid_are_refused() -> None:
    graph, layout = loaded(seeded(NETWORKS["table"][0]), (5,))
    with pytest.raises(UsageError, match="input's grid"):
        prove_band_bounds(graph, layout, band_masks((4,), 2))


# -------------------------------------------------------------------------------------------------- the basis


@pytest.mark.parametrize("grid", [(1,), (2,), (7,), (8,), (5, 4), (6, 6), (1, 1), (2, 3, 2)])
def test_both_bases_span_the_band(grid: tuple[int, ...]) -> None:
    for b, mask in enumerate((bands := band_masks(grid, 3)).masks.numpy()):
        for made in (band_basis(mask), checker_basis(mask)):
            assert made.shape == (mask.size, mask.sum())
            assert np.abs(made @ made.T - projector(bands, b)).max() < 1e-14 * mask.size


@pytest.mark.parametrize("grid", [(28, 28), (9,), (12, 10), (100,)])
def test_the_error_of_a_basis_is_within_what_is_accounted_for(grid: tuple[int, ...]) -> None:
    from flint import arb, ctx

    mask = np.zeros(grid, dtype=bool)
    mask.ravel()[1] = True
    mask |= mask[np.ix_(*((-np.arange(n)) % n for n in grid))]
    positions = [p.ravel() for p in np.indices(grid)]
    frequency = np.argwhere(mask)[0]
    with ctx.workprec(120):
        scale = (arb(2) / mask.size).sqrt()
        turns = [
            sum(arb(2 * int(w) * int(p[i])) / n for w, n, p in zip(frequency, grid, positions, strict=True))
            for i in range(mask.size)
        ]
        exact = np.array([[scale * t.cos_pi(), scale * t.sin_pi()] for t in turns], dtype=object)
        for made, allowed in ((band_basis(mask), error(2)), (checker_basis(mask), error(2))):
            # Columns come in any order and sign.
            for column in made.T:
                best = min(
                    float(sum(((e if s > 0 else -e) - arb(float(c))) ** 2 for e, c in zip(exact[:, k], column, strict=True)).sqrt())
                    for k in range(2) for s in (1, -1)
                )  # fmt: skip
                assert best <= allowed / math.sqrt(2)


def test_cosines_are_right_at_every_multiple_of_an_eighth_turn() -> None:
    half = math.sqrt(0.5)
    assert np.allclose(cosine_table(8), [1, half, 0, -half, -1, -half, 0, half], rtol=0, atol=2e-16)


# ------------------------------------------------------------------------------------------- hostile bundles


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certified bundle about the highest of three bands of a 4 x 4 grid."""
    network = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)))
    network[0].weight.data = network[0].weight.data.abs()  # low bands have larger gains
    found, _ = bounds(network, (1, 4, 4), 2)
    folder = tmp_path_factory.mktemp("bundles") / "band"
    write_bundle(found.bands[1], folder)
    assert found.bands[1].problem.claim.directions is not None
    assert lipcheck.check(folder).accepted
    return folder


def edited(honest: Path, place: Path, change: Callable[[dict[str, Any], dict[str, Any], Path], None]) -> Path:
    folder = place / "bundle"
    shutil.copytree(honest, folder)
    (folder / "verdict.json").unlink(missing_ok=True)
    documents = {name: json.loads((folder / name).read_text()) for name in ("claim.json", "proof.json")}
    change(documents["claim.json"], documents["proof.json"], folder)
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    return seal(folder)


def put(folder: Path, array: np.ndarray) -> dict[str, str]:
    from lipscope.network.graph import array_digest

    digest = array_digest(array)
    np.save(folder / "arrays" / f"{digest}.npy", array)
    return {"array": digest}


def mask_of(*places: tuple[int, int], grid: tuple[int, int] = (4, 4)) -> np.ndarray:
    mask = np.zeros(grid, dtype=bool)
    for place in places:
        mask[place] = True
    return mask


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Any], Path], None]] = {
    "another mask": lambda c, p, f: c["directions"].update(mask=put(f, mask_of((0, 0)))),
    "not symmetric": lambda c, p, f: c["directions"].update(mask=put(f, mask_of((0, 1)))),
    "empty": lambda c, p, f: c["directions"].update(mask=put(f, mask_of())),
    "wrong grid": lambda c, p, f: c["directions"].update(mask=put(f, mask_of((0, 0), grid=(4, 5)))),
    "mask of numbers": lambda c, p, f: c["directions"].update(mask=put(f, np.ones((4, 4)))),
    "other shape": lambda c, p, f: c["directions"].update(shape=[1, 2, 8], axes=[1, 2]),
    "wrong size": lambda c, p, f: c["directions"].update(shape=[2, 4, 4]),
    "no axes": lambda c, p, f: c["directions"].update(axes=[]),
    "axes twice": lambda c, p, f: c["directions"].update(axes=[1, 1]),
    "falling axes": lambda c, p, f: c["directions"].update(axes=[2, 1]),
    "axis out of range": lambda c, p, f: c["directions"].update(axes=[1, 3]),
    "kind": lambda c, p, f: c["directions"].update(kind="cone"),
    "more": lambda c, p, f: c["directions"].update(more=1),
    "null": lambda c, p, f: c.update(directions=None),
    "removed": lambda c, p, f: c.pop("directions"),
    "another norm": lambda c, p, f: c.update(input_norm="linf", output_norm="linf"),
    "a lower bound": lambda c, p, f: c["lower"].update(value={"float": "0x1p-10"}),
    "smaller": lambda c, p, f: c["upper"].update(value={"float": (0.9 * float.fromhex(c["upper"]["value"]["float"])).hex()}),
    "norm of the first step": lambda c, p, f: p["steps"][0].update(norm={"float": "0x1p-20"}),
    "a step to the basis": lambda c, p, f: p["steps"].insert(
        0, {"node": 2, "rule": "segment", "from": 0, "norm": {"float": "0x1p+3"}, "evidence": {"kind": "schur"}}
    ),
    "another rule": lambda c, p, f: p["steps"][0].update(rule="absolute", evidence={"kind": "absolute"}),
    "unbounded": lambda c, p, f: c["upper"].update(status="unbounded", value=None, node=1, reason="because"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_tampered_directions_are_rejected(name: str, honest: Path, tmp_path: Path) -> None:
    folder = edited(honest, tmp_path, HOSTILE[name])
    try:
        verdict = lipcheck.check(folder)
    except lipcheck.Unreadable:
        return
    assert not verdict.accepted
    assert verdict.upper["status"] == "rejected" and verdict.reasons


def test_a_smaller_band_is_still_true(honest: Path, tmp_path: Path) -> None:
    """A mask inside the honest one makes the claim weaker; the proof no longer fits its basis or still holds."""
    claim = json.loads((honest / "claim.json").read_text())
    mask = np.load(honest / "arrays" / f"{claim['directions']['mask']['array']}.npy")
    smaller = mask & mask_of((2, 2))
    assert smaller.any() and smaller.sum() < mask.sum()
    folder = edited(honest, tmp_path, lambda c, p, f: c["directions"].update(mask=put(f, smaller)))
    for unused in (folder / "arrays").glob(f"{claim['directions']['mask']['array']}.npy"):
        unused.unlink()
    assert lipcheck.check(seal(folder)).accepted


def test_the_rounding_of_the_basis_counts(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a basis that may be far off, the same proof proves less than the claim."""
    monkeypatch.setattr("lipcheck.proof.error", lambda directions: 1e-3)
    folder = edited(honest, tmp_path, lambda c, p, f: None)
    verdict = lipcheck.check(folder)
    assert not verdict.accepted and "the claim is" in verdict.reasons[0]


def test_periods_and_bases_that_cost_too_much_are_rejected() -> None:
    class Bundle:
        def array(self, value: object) -> np.ndarray:
            return np.ones(value, dtype=bool)  # type: ignore[call-overload]

    for shape in ([2999, 3001], [20000]):
        stored = {"kind": "band", "mask": tuple(shape), "shape": shape, "axes": list(range(len(shape)))}
        with pytest.raises(Rejected, match="at most"):
            read_directions(stored, math.prod(shape), Bundle())  # type: ignore[arg-type]


def test_channels_last_and_flat_inputs_give_the_same_bounds() -> None:
    class Last(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.permute(0, 3, 1, 2))

    inner = seeded(NETWORKS["conv"][0])
    first, _ = bounds(inner, (2, 4, 3))
    graph, _ = loaded(Last(inner), (4, 3, 2))
    layout = Layout((4, 3, 2), (0, 1))
    last = prove_band_bounds(graph, layout, band_masks((4, 3), 3), PATIENT, "product").checked()
    assert all(r.upper.status == "certified" for r in last.bands)
    assert np.allclose(values(last), values(first), rtol=1e-4, atol=0)


def test_custom_bands_are_certified() -> None:
    mask = torch.from_numpy(mask_of((0, 1), (0, 3), (2, 2)))
    graph, layout = loaded(seeded(NETWORKS["residual"][0]), (1, 4, 4))
    found = prove_band_bounds(graph, layout, custom_bands(torch.stack([mask, ~mask])), PATIENT, "product").checked()
    assert [r.upper.status for r in found.bands] == ["certified"] * 2
    assert any(isinstance(n, Add) for n in graph) and any(isinstance(n, Elementwise) for n in graph)


def test_both_programs_account_for_the_same_error() -> None:
    stored = {"kind": "band", "mask": None, "shape": [28, 28], "axes": [0, 1]}

    class Bundle:
        def array(self, value: object) -> np.ndarray:
            return np.ones((28, 28), dtype=bool)

    assert checker_error(read_directions(stored, 784, Bundle())) >= error(784) * (1 - 1e-15)  # type: ignore[arg-type]
