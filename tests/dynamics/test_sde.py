"""The stochastic differential equation: coefficients against closed forms and Monte Carlo, and forecasts that refuse themselves."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lipscope.claims.errors import UsageError
from lipscope.dynamics.identity import LayerTerms, StepTerms
from lipscope.dynamics.noise import NoiseLevel, NoiseLevels, per_sample_noise
from lipscope.dynamics.operator_calculus import second_derivative
from lipscope.dynamics.prediction import Coefficients, LayerCoefficients, forecast
from lipscope.dynamics.sde import coefficients, observed_coefficients
from lipscope.dynamics.track import IdentityTracker


def levels(calls: int = 1) -> NoiseLevels:
    one = NoiseLevel("a", calls, 2.0, drift=0.4, variance=0.09, curvature=0.5, flow_curvature=0.01)
    other = NoiseLevel("b", 1, 0.5, drift=-0.1, variance=0.04, curvature=0.2, flow_curvature=0.02)
    return NoiseLevels((one, other), 0.3, 64, 8)


def point(
    step: int, drift: float, diffusion: float = 0.0, kappa: float = 0.0, omitted: float = 0.0, ratio: float = 0.1
) -> Coefficients:
    return Coefficients(step, 0.1, (LayerCoefficients("a", drift, kappa, diffusion, 0.0, omitted),), diffusion, ratio)


def names(found: object, unsound: bool = True) -> set[str]:
    return {f.name for f in found.flags if f.unsound == unsound}  # type: ignore[attr-defined]


def test_coefficients_are_the_formulas() -> None:
    eta = 0.1
    found = coefficients(levels(calls=2), eta, step=5)
    a, b = found.layers
    assert a.drift == pytest.approx(-2 * 0.4 / 2.0) and b.drift == pytest.approx(0.1 / 0.5)
    assert a.noise_curvature == pytest.approx(2 * eta * 0.5 / (2 * 2.0))
    assert a.diffusion == pytest.approx(4 * eta * 0.09 / 4.0)  # two calls move together
    assert a.correction == pytest.approx(-2 * eta * 0.09 / 4.0 / 2)  # and each has its own -l^2/2
    assert a.flow_curvature == pytest.approx(2 * eta * 0.01 / (2 * 2.0))
    assert found.diffusion == pytest.approx(eta * 0.3)
    assert found.block_diffusion == pytest.approx(a.diffusion + b.diffusion)
    assert found.drift == pytest.approx(sum(x.drift + x.noise_curvature + x.correction for x in (a, b)))
    assert found.product_drift == pytest.approx(found.drift + found.diffusion / 2)
    with pytest.raises(UsageError, match="step size"):
        coefficients(levels(), 0.0)


def test_one_step_of_the_equation_is_the_mean_and_variance_of_one_step_of_training() -> None:
    """Over all batches of a small population: equal up to third order, once the curvature of the flow is added by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(10, 5, dtype=torch.float64), torch.randint(3, (10,))
    loss, batch, eta = nn.CrossEntropyLoss(), 2, 0.003
    found = coefficients(per_sample_noise(model, x, y, loss, batch_size=batch, population=10), eta)
    weights = [model[0].weight, model[2].weight]
    svds = [torch.linalg.svd(w.detach(), full_matrices=False) for w in weights]
    changes = []
    for rows in itertools.combinations(range(10), batch):
        gradients = torch.autograd.grad(loss(model(x[list(rows)]), y[list(rows)]), weights)
        norms = [torch.linalg.matrix_norm(w.detach() - eta * g, 2) for w, g in zip(weights, gradients, strict=True)]
        changes.append(sum(math.log(float(n) / float(s[0])) for n, (_, s, _) in zip(norms, svds, strict=True)))
    seen = torch.tensor(changes, dtype=torch.float64)
    omitted = 0.0
    for w, g, (u, s, v) in zip(weights, torch.autograd.grad(loss(model(x), y), weights), svds, strict=True):
        sigma = float(s[0])
        first = eta * float(u[:, 0] @ g @ v[0]) / sigma
        omitted += eta**2 * float(second_derivative(w.detach(), g)) / (2 * sigma) - first**2 / 2
    gap = abs(float(seen.mean()) - eta * found.drift - omitted)
    # every part would be missed if it were not there
    for part in ("drift", "noise_curvature", "correction"):
        assert gap < 0.1 * abs(eta * sum(getattr(layer, part) for layer in found.layers)), part
    assert gap < 0.1 * abs(omitted)
    assert float(seen.var(correction=0)) == pytest.approx(eta * found.diffusion, rel=0.02)
    assert abs(found.diffusion / found.block_diffusion - 1) > 0.05


def test_the_path_integrates_drift_and_diffusion() -> None:
    found = forecast([point(0, 1.0, 0.5), point(1, -2.0, 0.25), point(2, 0.0, 0.0)], 3.0, 3)
    assert found.steps == (0, 1, 2, 3)
    assert found.path == pytest.approx((3.0, 3.1, 2.9, 2.9))
    assert found.sd == pytest.approx((0.0, math.sqrt(0.05), math.sqrt(0.075), math.sqrt(0.075)))
    assert found.sound and names(found, unsound=False) == {"variance", "state"}
    assert found.mean_product[1] == pytest.approx(math.exp(3.1 + 0.025))
    assert found.sd_product[1] == pytest.approx(math.exp(3.1 + 0.025) * math.sqrt(math.exp(0.05) - 1))
    assert forecast([point(0, 1e5)], 0.0, 1).mean_product[-1] == math.inf


def test_the_lognormal_moments_are_those_of_geometric_brownian_motion() -> None:
    """K with drift m and volatility s has E K = exp(m t): here log K drifts by m - s^2/2."""
    m, s2, steps = 0.3, 0.2, 10
    found = forecast([point(k, m - s2 / 2, s2) for k in range(steps)], 0.0, steps)
    assert found.mean_product[-1] == pytest.approx(math.exp(m * 0.1 * steps))


def test_sparse_probes_are_unsound_and_averages_are_not() -> None:
    probes = [point(0, 1.0), point(10, 1.0)]
    sparse = forecast(probes, 0.0, 20)
    assert not sparse.sound and names(sparse) == {"cadence"}
    assert "every 10 steps" in next(f.reason for f in sparse.flags if f.name == "cadence")
    assert forecast(probes, 0.0, 20, averaged=True).sound


def test_too_large_a_step_is_unsound() -> None:
    assert forecast([point(0, 1.0, kappa=1.0, omitted=0.3)], 0.0, 1).sound
    found = forecast([point(0, 1.0, kappa=1.0, omitted=0.5)], 0.0, 1)
    assert names(found) == {"step size"} and "0.25" in found.flags[-1].reason
    # flows of both signs cancel in the path, so they do not excuse a large step
    swing = [replace(point(k, (-1.0) ** k, kappa=0.1, omitted=0.05), step=k) for k in range(10)]
    assert names(forecast(swing, 0.0, 10)) == {"step size"}
    assert names(forecast([point(0, 0.0, omitted=1.0)], 0.0, 1)) == {"step size"}
    unknown = forecast([point(0, 1.0, omitted=math.nan)], 0.0, 1)
    assert unknown.sound and "step size" in names(unknown, unsound=False)


def test_small_gaps_are_unsound() -> None:
    steps = [point(k, 1.0, ratio=0.9 if k < 3 else 0.1) for k in range(100)]
    assert names(forecast(steps, 0.0, 100)) == {"gap"}
    rare = [point(k, 1.0, ratio=0.9 if k < 1 else 0.1) for k in range(100)]
    found = forecast(rare, 0.0, 100)
    assert found.sound and "gap" in names(found, unsound=False)
    unseen = forecast([point(0, 1.0, ratio=math.nan)], 0.0, 1)
    assert unseen.sound and "gap" in names(unseen, unsound=False)


def test_unknown_coefficients_are_unsound() -> None:
    assert names(forecast([point(0, math.nan)], 0.0, 1)) >= {"coefficients"}
    assert names(forecast([point(0, 1.0, diffusion=math.nan)], 0.0, 1)) >= {"coefficients"}


def test_a_forecast_that_was_wrong_is_refuted() -> None:
    steps = [point(k, 1.0) for k in range(5)]
    assert forecast(steps, 0.0, 5, observed=[0.0, 0.1, 0.21, 0.29, 0.4, 0.5]).sound
    wrong = forecast(steps, 0.0, 5, observed=[0.0, -0.1, -0.2, -0.3, -0.4, -0.5])
    assert names(wrong) == {"observed"} and "R^2" in wrong.flags[-1].reason
    assert not forecast(steps, 0.0, 5, observed=[0.0] * 6).sound


def test_wrong_use() -> None:
    with pytest.raises(UsageError, match="growing"):
        forecast([], 0.0, 1)
    with pytest.raises(UsageError, match="growing"):
        forecast([point(3, 1.0)], 0.0, 3)
    with pytest.raises(UsageError, match="observed"):
        forecast([point(0, 1.0)], 0.0, 1, observed=[0.0])


def followed(rate: float, count: int, batch: int = 8) -> tuple[list[Coefficients], list[float]]:
    """A training of a small network: coefficients of all steps, and the log product along them."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(64, 6, dtype=torch.float64), torch.randint(3, (64,))
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=rate)
    tracker = IdentityTracker(model, optimizer, probe=x[:1], loss=loss, reference=(x, y))
    points, path = [], []
    for number in range(count):
        rows = torch.randperm(64)[:batch]
        optimizer.zero_grad()
        loss(model(x[rows]), y[rows]).backward()
        tracker.before_step()
        optimizer.step()
        step = tracker.after_step()
        points.append(observed_coefficients(step, rate, number))
        path += [step.log_product, step.log_product_after] if not path else [step.log_product_after]
    assert path[-1] - path[0] == pytest.approx(tracker.totals.change)
    drift = sum(tracker.totals.terms[t] for t in ("flow", "noise_curvature"))
    found = forecast(points, path[0], count)
    correction = sum(layer.correction * rate for p in points for layer in p.layers)
    assert found.path[-1] - path[0] == pytest.approx(drift + correction)
    return points, path


def test_coefficients_of_observed_steps_forecast_a_run() -> None:
    points, path = followed(0.05, 60)
    found = forecast(points, path[0], 60, observed=path)
    assert abs(found.path[-1] - path[-1]) < 4 * found.sd[-1]
    assert found.sd[-1] > 0 and points[3].step == 3 and 0 <= points[3].q_ratio < 0.5
    assert abs(points[0].diffusion - points[0].block_diffusion) > 0


def test_too_large_a_step_of_a_real_run_is_told() -> None:
    """The curvature of the flow grows with the step, and the equation has none."""
    points, path = followed(0.6, 4, batch=48)
    assert "step size" in names(forecast(points, path[0], 4))
    small, path = followed(0.02, 4, batch=48)
    assert "step size" not in names(forecast(small, path[0], 4))


def test_steps_without_a_split_have_no_coefficients() -> None:
    layer = LayerTerms("a", "Linear", 1.0, 1.0, 0.1, 0.0, {"gradient": 0.0}, 0.0, 0.0)
    step = StepTerms((layer,), 0.0, 0.0, 0.0, {"gradient": 0.0}, 0.0)
    with pytest.raises(UsageError, match="plain SGD"):
        observed_coefficients(step, 0.1, 0)
    with pytest.raises(UsageError, match="step size"):
        observed_coefficients(step, -0.1, 0)
    lost = replace(layer, terms={})
    point = observed_coefficients(replace(step, layers=(lost,)), 0.1, 0)
    assert names(forecast([point], 0.0, 1)) >= {"coefficients"}
    split = dict.fromkeys(("flow", "noise", "noise_curvature", "flow_curvature"), 0.2)
    twice = observed_coefficients(replace(step, layers=(replace(layer, terms=split, calls=2),)), 0.1, 0).layers[0]
    assert twice.diffusion == pytest.approx(0.4) and twice.correction == pytest.approx(-0.1)
