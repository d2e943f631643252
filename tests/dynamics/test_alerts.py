from __future__ import annotations

import math

from lipscope.claims.quantity import Reading
from lipscope.dynamics.alerts import Watchman


def rows(quantity: str, name: str, value: float, layer: str = "", note: str = "") -> list[tuple[str, Reading]]:
    return [(quantity, Reading(name, value, "measured", layer, note=note))]


def norms(*values: float) -> list[tuple[str, Reading]]:
    return [row for i, v in enumerate(values) for row in rows("layer-norms", "norm", v, f"fc{i}")]


def kinds(
    watchman: Watchman, *moments: list[tuple[str, Reading]], seconds: float = 100.0
) -> list[list[tuple[str, str]]]:
    return [[(a.kind, a.layer) for a in watchman.look(i + 1, m, seconds)] for i, m in enumerate(moments)]


def test_a_layer_that_takes_over_is_told_once_and_again_after_it_has_calmed_down() -> None:
    moments = [norms(1, 2, 3), norms(1.1, 2.2, 3.3), norms(1, 2, 20), norms(1, 2, 21), norms(1, 2, 3), norms(1, 2, 20)]
    alert = [("takes-over", "fc2")]
    assert kinds(Watchman(), *moments) == [[], [], alert, [], [], alert]


def test_all_layers_growing_alike_is_no_takeover() -> None:
    assert kinds(Watchman(), norms(1, 2, 3), norms(100, 200, 300)) == [[], []]
    assert kinds(Watchman(), norms(1), norms(100)) == [[], []]


def slopes(before: float, after: float, noise: float = 0.0) -> int:
    watchman = Watchman()
    found = 0
    level = 0.0
    for i in range(1, 41):
        step = int(10 * 1.3**i)
        level += (before if i <= 20 else after) * math.log(1.3)
        value = math.exp(level + noise * (-1) ** i)
        found += len(
            [a for a in watchman.look(step, rows("probe-lipschitz", "lower", value)) if a.kind == "slope-changed"]
        )
    return found


def test_a_slope_that_changes_is_told_once() -> None:
    assert slopes(0.2, 1.5) == 1
    assert slopes(1.5, 0.0) == 1


def test_steady_or_noisy_growth_is_not() -> None:
    assert slopes(0.5, 0.5) == 0
    assert slopes(0.5, 0.7) == 0
    assert slopes(0.2, 1.0, noise=1.0) == 0


def test_margin_per_lipschitz_is_compared_with_its_best() -> None:
    found = kinds(Watchman(), *(rows("margins", "margin_per_lipschitz", v) for v in (-1.0, 0.5, 2.0, 1.2, 0.9, 0.5)))
    assert found == [[], [], [], [], [("margin-per-lipschitz", "")], []]


def test_the_rank_that_the_task_needs() -> None:
    moments = [rows("spectrum", "rank_1e-2", v) for v in (9.0, 8.4, 9.0)]
    assert kinds(Watchman(needed_rank=9), *moments) == [[], [("jacobian-rank", "")], []]
    assert kinds(Watchman(), *moments) == [[], [], []]
    swings = [rows("spectrum", "rank_1e-2", v) for v in (9.0, 8.9, 9.0, 8.6, 8.4, 8.9, 8.4, 9.0, 8.9, 8.0)]
    told = [step for step, found in enumerate(kinds(Watchman(needed_rank=9), *swings)) if found]
    assert told == [4, 9], "a mean that swings about the rank is not told of at every look"
    assert kinds(Watchman(needed_rank=9), rows("spectrum", "rank_1e-2", 3.0, "fc1")) == [[]], "a layer may be narrow"


def test_gap_bound_and_weights() -> None:
    assert kinds(Watchman(), rows("identity", "q_ratio", 0.6, "fc1"), rows("identity", "q_ratio", math.nan, "fc1")) == [
        [("gap", "fc1")], [],
    ]  # fmt: skip
    watchman = Watchman()
    (alert,) = watchman.look(1, rows("upper", "upper", math.inf, note="'attention' has no constant"))
    assert alert.kind == "not-certifiable" and "'attention' has no constant" in alert.message
    assert not watchman.look(2, rows("upper", "upper", 3.0))
    assert kinds(Watchman(), rows("weights", "weight_norm", 1.0), rows("weights", "weight_norm", math.nan)) == [
        [], [("not-finite", "")],
    ]  # fmt: skip


def test_overhead_is_judged_after_a_while() -> None:
    moment = rows("observer", "overhead", 0.08)
    assert kinds(Watchman(budget=0.05), moment, seconds=1.0) == [[]]
    assert kinds(Watchman(budget=0.05), moment) == [[("over-budget", "")]]
    assert kinds(Watchman(budget=0.08), moment) == [[]]
