"""bias-variance: the two bounds are theorems, tight where they can be, and the verdict can be no."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from harness.expect import expect_close, expect_upper
from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import silent
from lipscope.studies import bias_variance
from lipscope.studies.bias_variance import STUDY, Settings, bounds, measure, smallest, variance
from lipscope.studies.study import stored
from studies.tiny_data import small

TINY = Settings(widths=(2, 5), seeds=(0, 1, 2), samples=20, steps=40)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty points instead of MNIST-1D."""
    monkeypatch.setattr(bias_variance, "mnist1d", lambda: small(20))


def test_variance_is_numpys() -> None:
    outputs = torch.randn(4, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(variance(outputs), np.var(outputs.numpy(), axis=0).sum(1), rtol=1e-13)


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), seeds=st.integers(2, 6), inputs=st.integers(1, 4), outputs=st.integers(1, 4),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0]), common=st.sampled_from([0.0, 1.0, 10.0]),
)  # fmt: skip
def test_both_bounds_hold_for_affine_maps_with_their_exact_constants(
    seed: int, seeds: int, inputs: int, outputs: int, scale: float, common: float
) -> None:
    """Affine maps: constants are spectral norms, and every number is found here in another way."""
    rng = np.random.default_rng(seed)
    shared = common * rng.standard_normal((outputs, inputs))
    weights = shared + scale * rng.standard_normal((seeds, outputs, inputs))
    offsets = scale * rng.standard_normal((seeds, outputs))
    x, reference = rng.standard_normal((9, inputs)), rng.standard_normal(inputs)
    constants = torch.from_numpy(np.array([np.linalg.norm(w, 2) for w in weights]))
    values = np.stack([x @ w.T + b for w, b in zip(weights, offsets, strict=True)])
    at = np.stack([w @ reference + b for w, b in zip(weights, offsets, strict=True)])
    truth = float(np.var(values, axis=0).sum(1).mean())
    found = bounds(constants, torch.from_numpy(np.linalg.norm(x - reference, axis=1)), float(np.var(at, axis=0).sum()))
    expect_upper(found["two_term"] * (1 + 1e-12), truth)
    expect_upper(found["three_term"] * (1 + 1e-12), found["two_term"])
    explicit = np.mean(
        [(np.sqrt(np.mean(constants.numpy() ** 2)) * np.linalg.norm(p - reference) + np.sqrt(np.var(at, axis=0).sum())) ** 2
         for p in x]
    )  # fmt: skip
    expect_close(found["two_term"], float(explicit), 1e-12)


def test_the_two_term_bound_is_attained() -> None:
    """f = +-c x on the line, from the origin: the variance is c^2 x^2, and so is the bound. A smaller one would be wrong."""
    x = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    outputs = torch.stack([1.5 * x, -1.5 * x])[:, :, None]
    found = bounds(torch.tensor([1.5, 1.5], dtype=torch.float64), x.abs(), 0.0)
    expect_close(found["two_term"], float(variance(outputs).mean()), 1e-15)
    expect_close(found["three_term"], 6 * found["two_term"], 1e-15)


@pytest.mark.usefixtures("few")
def test_a_small_run_obeys_the_theorem_and_decomposes_the_error() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    figures = measure(TINY, silent)
    assert torch.equal(torch.get_rng_state(), before)
    assert [row["width"] for row in figures["rows"]] == [2, 5]
    for row in figures["rows"]:
        expect_close(row["bias"] + row["variance"], row["test_error"], 1e-12)
        expect_upper(row["c_upper"], row["c_lower"])
        for key in ("zero", "test_mean"):
            expect_upper(row["bound"][key]["two_term"], row["variance"], key)
            expect_upper(row["bound"][key]["three_term"], row["bound"][key]["two_term"], key)
            expect_close(row["looseness"][key]["two_term"] * row["variance"], row["bound"][key]["two_term"], 1e-12)
            expect_upper(row["bound"][key]["two_term"], row["not_a_bound_with_c_lower"][key])
    assert STUDY.judge(figures, TINY) is None  # two widths show no peak


@pytest.mark.usefixtures("few")
def test_tighter_constants_give_tighter_bounds() -> None:
    one = Settings(widths=(5,), seeds=(0, 1), samples=20, steps=40)
    product = measure(one, silent)["rows"][0]
    best = measure(Settings(widths=(5,), seeds=(0, 1), samples=20, steps=40, method="auto"), silent)["rows"][0]
    assert product["variance"] == best["variance"] and best["c_lower"] <= best["c_upper"] < product["c_upper"]
    assert smallest(best) < smallest(product)


@pytest.mark.usefixtures("few")
def test_stopped_it_keeps_the_widths_that_were_reached() -> None:
    def stop(message: str, fraction: float) -> None:
        if message.startswith("width 5"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        measure(TINY, stop)
    assert [row["width"] for row in stopped.value.result["rows"]] == [2]


def curve(variances: list[float], two_terms: list[float]) -> dict:
    rows = [
        {"width": w, "variance": v, "bound": {k: {"two_term": b, "three_term": 6 * b} for k in ("zero", "test_mean")}}
        for w, (v, b) in enumerate(zip(variances, two_terms, strict=True))
    ]
    peaks = {"variance_peak_width": int(np.argmax(variances)), "bound_peak_width": int(np.argmax(two_terms))}
    return {"rows": rows, **peaks}


def test_the_verdict() -> None:
    assert STUDY.judge(curve([1, 3, 2, 1], [10, 30, 20, 10]), TINY) is True
    assert STUDY.judge(curve([1, 3, 2, 1], [30, 10, 10, 10]), TINY) is True
    assert STUDY.judge(curve([1, 3, 2, 1], [10, 10, 10, 30]), TINY) is False
    assert STUDY.judge(curve([3, 2, 1, 1], [30, 20, 10, 10]), TINY) is None
    assert STUDY.judge(curve([1, 2, 3], [10, 20, 30]), TINY) is None
    assert STUDY.judge(curve([1, 3, 2, 1], [10, 2.9, 20, 10]), TINY) is False  # the theorem broken: an error of ours
    broken = copy.deepcopy(curve([1, 3, 2, 1], [10, 30, 20, 10]))
    broken["rows"][3]["bound"]["zero"]["three_term"] = 9.0
    assert STUDY.judge(broken, TINY) is False


def test_the_stored_run_obeys_the_theorem() -> None:
    result = stored("bias-variance")
    assert result is not None and len(result["settings"]["seeds"]) >= 4
    for row in result["figures"]["rows"]:
        expect_upper(row["bound"]["zero"]["two_term"], row["variance"])
        expect_upper(row["bound"]["test_mean"]["two_term"], row["variance"])
        expect_close(row["bias"] + row["variance"], row["test_error"], 1e-12)


@pytest.mark.parametrize(
    "wrong", [{"widths": ()}, {"widths": (3, 3)}, {"seeds": (1,)}, {"seeds": (1, 1)}, {"samples": 0}, {"steps": -1}]
)
def test_settings_without_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        Settings(**wrong)
