"""Lines above and below functions, and the boxes that they narrow: nothing sampled lies outside, with zero slack."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bounds.local_cases import points as sampled
from bounds.local_cases import problem
from harness.networks import BY_NAME, NETWORKS, dense
from lipcheck.errors import Rejected
from lipcheck.lines import Lines as CheckerLines
from lipcheck.lines import prove_lines
from lipcheck.nodes import Node as CheckerNode
from lipscope import bound, load
from lipscope.bounds.local.backward import Backward
from lipscope.bounds.local.lines import Lines, lines
from lipscope.bounds.problem import pose, propagate
from lipscope.claims.claim import Claim, Output
from lipscope.network.nodes import Elementwise
from lipscope.rules.graph_value import evaluate_graph
from lipscope.rules.questions import Interval, box_image, evaluate, slopes

CASES: dict[str, dict[str, float]] = {
    "relu": {}, "leaky_relu": {"negative_slope": 0.2}, "abs": {}, "clip": {"low": -0.5, "high": 0.7},
    "softshrink": {"lambd": 0.4}, "hardswish": {}, "sigmoid": {}, "tanh": {}, "arctan": {}, "erf": {}, "softsign": {},
    "tanhshrink": {}, "softplus": {"beta": 2.0}, "gelu": {}, "gelu_tanh": {}, "silu": {"beta": 1.0}, "mish": {},
    "elu": {"alpha": 2.0}, "celu": {"alpha": 0.7}, "selu": {}, "sin": {}, "cos": {}, "exp": {}, "square": {},
    "power": {"exponent": 3.0},
}  # fmt: skip
LEAKY = {"leaky_relu": -1.5}


def make(name: str, size: int, **arguments: float) -> Elementwise:
    return Elementwise(inputs=(0,), shape=(size,), name=name, function=name, arguments=tuple(arguments.items()))


def intervals(seed: int = 1) -> Interval:
    """Wide, narrow, one-sided and single-point intervals, kinks at their ends among them."""
    rng = np.random.default_rng(seed)
    ends = rng.standard_normal((24, 2)) * rng.choice([1e-3, 0.5, 2.0, 6.0], (24, 1))
    ends[:4] = [[0, 1], [-1, 0], [-0.5, 0.7], [0.3, 0.3]]
    ends.sort(1)
    return Interval(*torch.from_numpy(ends.T.copy()))


def lines_of(node: Elementwise, box: Interval) -> Lines:
    found = lines(node, box, slopes(node, box), box_image(node, box))
    assert found is not None
    return found


def checker(node: Elementwise, found: Lines) -> tuple[CheckerNode, CheckerLines]:
    theirs = CheckerNode("Elementwise", node.inputs, node.shape, node.name, node.parameters())
    below = found.lower_slope.numpy(), found.lower_offset.numpy()
    return theirs, CheckerLines(below, (found.upper_slope.numpy(), found.upper_offset.numpy()))


@pytest.mark.parametrize("name", CASES)
def test_lines_hold_and_the_checker_proves_them(name: str) -> None:
    box = intervals()
    node = make(name, 24, **CASES[name])
    found = lines_of(node, box)
    share = torch.linspace(0, 1, 301, dtype=torch.float64)[:, None]
    x = (box.lower + (box.upper - box.lower) * share).clamp(box.lower, box.upper)
    value = evaluate(node, x)
    assert (found.lower_slope * x + found.lower_offset <= value).all()
    assert (value <= found.upper_slope * x + found.upper_offset).all()
    theirs, proposed = checker(node, found)
    prove_lines(theirs, box.lower.numpy(), box.upper.numpy(), proposed)


@pytest.mark.parametrize("name", CASES)
def test_lines_are_close(name: str) -> None:
    """The gap in the middle is at most that of the chord and a parallel tangent: slope range times width."""
    box = intervals()
    node = make(name, 24, **CASES[name])
    found = lines_of(node, box)
    middle = (box.lower + box.upper) / 2
    gap = (found.upper_slope - found.lower_slope) * middle + found.upper_offset - found.lower_offset
    low, high = slopes(node, box)
    assert (gap <= (high - low) * (box.upper - box.lower) * 0.51 + 1e-9 * (1 + middle.abs())).all()


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_the_checker_refuses_a_line_that_cuts_the_function(name: str, upper: bool) -> None:
    box = Interval(torch.tensor([-1.3], dtype=torch.float64), torch.tensor([1.1], dtype=torch.float64))
    node = make(name, 1, **CASES[name])
    found = lines_of(node, box)
    x = torch.linspace(-1.3, 1.1, 20001, dtype=torch.float64)[:, None].clamp(-1.3, 1.1)
    value = evaluate(node, x)
    if upper:
        excess = (found.upper_slope * x + found.upper_offset - value).amin()
        cut = replace(found, upper_offset=found.upper_offset - excess - 1e-9)
    else:
        excess = (value - found.lower_slope * x - found.lower_offset).amin()
        cut = replace(found, lower_offset=found.lower_offset + excess + 1e-9)
    theirs, proposed = checker(node, cut)
    with pytest.raises(Rejected, match="not proved"):
        prove_lines(theirs, box.lower.numpy(), box.upper.numpy(), proposed)


NARROWED = ["one-input", "two-hidden", "deep", "densenet", "tanh", "residual", "conv", "softmax", "layernorm", "gelu"]


@pytest.mark.parametrize(("norm", "kind"), [("linf", "large"), ("l2", "ball"), ("l1", "ball"), ("linf", "ball")])
@pytest.mark.parametrize("name", NARROWED)
def test_sampled_values_stay_in_narrowed_boxes(name: str, norm: str, kind: str) -> None:
    posed = problem(name, norm, kind)
    assert posed.narrowing is not None and posed.intervals is not None and posed.box is not None
    around = propagate(posed.graph, posed.box)
    x = sampled(posed.claim.region, norm, posed.graph.input_size, 400)
    for index, box in posed.intervals.items():
        value = evaluate_graph(replace(posed.graph, output=index), x)
        # The evaluation in floats is off by some units in the last place of what it adds up.
        noise = 1e-13 * (1 + box.magnitude.reshape(-1))
        assert (box.lower.reshape(-1) - noise <= value).all(), (index, "lower")
        assert (value <= box.upper.reshape(-1) + noise).all(), (index, "upper")
        assert (around[index].lower <= box.lower).all() and (box.upper <= around[index].upper).all()


def test_balls_and_depth_narrow() -> None:
    """The boxes shrink where theory says so: dual norms in the first layer, cancellation in the second."""
    for norm, name, kind, share in (
        ("l2", "scalar-output", "ball", 0.8),
        ("l1", "scalar-output", "ball", 0.6),
        ("linf", "tanh", "large", 0.9),
    ):
        posed = problem(name, norm, kind)
        assert posed.narrowing is not None and posed.box is not None
        around = propagate(posed.graph, posed.box)
        found = [posed.narrowing.intervals[i] for i in posed.narrowing.entries]
        before = [around[i] for i in posed.narrowing.entries]
        total = sum(float((b.upper - b.lower).sum()) for b in found)
        assert 0 < total <= share * sum(float((b.upper - b.lower).sum()) for b in before), (norm, name)


def test_a_first_layer_on_a_ball_is_exact() -> None:
    """`w x + b` over an l2 ball reaches `w c + b + r |w|`: the box of the unit is that, to rounding."""
    posed = problem("scalar-output", "l2", "ball")
    module, region = BY_NAME["scalar-output"].module(), posed.claim.region
    weight, bias = (p.detach().numpy() for p in (module[0].weight, module[0].bias))
    center = weight @ region.center + bias
    reach = np.linalg.norm(weight, axis=1) * region.radius
    entries = posed.narrowing.entries[1].numpy()  # the others have a fixed slope on the box around the ball already
    assert len(entries) >= 5
    lower, upper = (t.reshape(-1).numpy()[entries] for t in (posed.intervals[1].lower, posed.intervals[1].upper))
    np.testing.assert_allclose(upper, (center + reach)[entries], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(lower, (center - reach)[entries], rtol=1e-12, atol=1e-12)


def test_a_missing_bias_turns_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: constants of layers are forgotten on the way back. Sampled values leave the boxes."""
    plain = Backward._majorant

    def without(self: Backward, index: int, node: object) -> tuple[torch.Tensor, torch.Tensor, int]:
        bias, largest, count = plain(self, index, node)
        return torch.zeros_like(bias), largest, count

    monkeypatch.setattr(Backward, "_majorant", without)
    with pytest.raises(AssertionError):
        test_sampled_values_stay_in_narrowed_boxes("tanh", "l2", "ball")


def test_what_is_too_much_work_is_left_and_listed() -> None:
    from lipscope.bounds.local.narrowing import narrow

    posed = problem("two-hidden", "l2", "ball")
    found = narrow(posed.graph, posed.claim.region, "l2", most=10)
    assert not found.entries and set(found.left) == {1, 3}
    around = propagate(posed.graph, posed.box)
    assert all(torch.equal(box.upper, around[i].upper) for i, box in found.intervals.items())


@pytest.mark.parametrize("name", [n.name for n in NETWORKS])
def test_a_ball_of_radius_zero_is_its_center(name: str) -> None:
    from lipscope import Ball

    posed = problem(name, "l2", "ball")
    center = posed.claim.region.center
    tiny = pose(posed.graph, Claim("l2", Ball(center, 0.0), Output()))
    assert tiny.intervals is not None
    value = evaluate_graph(posed.graph, torch.from_numpy(center)[None])[0]
    box = tiny.intervals[posed.graph.output]
    assert (box.lower.reshape(-1) <= value + 1e-12).all() and (value - 1e-12 <= box.upper.reshape(-1)).all()
    assert math.isfinite(float(box.upper.max())) and float((box.upper - box.lower).max()) < 1e-9


def test_narrowing_obeys_the_budget_and_says_what_was_left_out() -> None:
    """A tiny budget leaves layers with interval bounds, in words; a larger one leaves none, and is never worse."""
    module = dense(6, 40, 40, 40, 2).double().eval()
    model = load(module, input_shape=(6,))
    bounds_ = []
    for budget, left in ((1e-4, True), (5.0, False)):
        result = bound(model, "linf", "box:-0.1,0.1", method="absolute", budget=budget)
        assert any("keep interval bounds" in warning for warning in result.warnings) == left
        assert result.upper.status == "certified"
        bounds_.append(result.upper.value)
    assert bounds_[1] < bounds_[0]
