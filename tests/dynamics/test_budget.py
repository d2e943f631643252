from __future__ import annotations

import pytest

from lipscope.claims.errors import UsageError
from lipscope.dynamics.budget import ADVANCE, LONGEST_SLEEP, Controller, accounts, preset

GROUPS = ("step", "identity", "probe", "noise", "proof", "spectrum")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    budget: float,
    steps: int,
    step: float,
    costs: dict[str, float],
    pauses: dict[int, float] | None = None,
    idle: float = 0.0,
) -> tuple[Controller, dict[str, list[int]]]:
    """A training of `steps` steps of `step` seconds each, with readings that cost what `costs` says."""
    clock = Clock()
    controller = Controller(budget, accounts(GROUPS), clock)
    for account in controller.accounts:
        account.read(0, costs[account.name], paid=False)
    controller.start(0)
    seen: dict[str, list[int]] = {name: [] for name in GROUPS}
    for number in range(1, steps + 1):
        clock.now += step + (pauses or {}).get(number, 0.0)
        if number < controller.wake:
            continue
        entered = controller.enter(number)
        charged = 0.0
        for account in controller.due(number):
            clock.now += costs[account.name]
            charged += costs[account.name]
            account.read(number, costs[account.name])
            seen[account.name].append(number)
        clock.now += idle
        controller.sleep(number)
        controller.leave(entered, charged)
    return controller, seen


COSTS = {"step": 3e-4, "identity": 2e-3, "probe": 5e-3, "noise": 4e-3, "proof": 0.3, "spectrum": 0.2}


@pytest.mark.parametrize("budget", [0.02, 0.25])
@pytest.mark.parametrize("step", [1e-4, 3e-3, 1.0])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_the_promise_is_kept_up_to_the_advance(budget: float, step: float, scale: float) -> None:
    costs = {name: scale * cost for name, cost in COSTS.items()}
    controller, _ = run(budget, 4000, step, costs)
    # What is spent was earned, beside the advance and the last step's bookkeeping.
    assert controller.own <= budget * (controller.training + ADVANCE) * (1 + 1e-9)
    slept = LONGEST_SLEEP * step  # time of training is counted when the books are looked at
    assert 4000 * step - slept <= controller.training <= 4000 * step * (1 + 1e-9)


def test_money_is_used_where_there_is_something_to_look_at() -> None:
    controller, seen = run(0.05, 20_000, 3e-3, COSTS)
    assert controller.own >= 0.7 * 0.05 * controller.training
    assert all(seen.values()), {name: len(steps) for name, steps in seen.items()}


def test_cheap_groups_are_read_at_every_step_and_at_their_intervals() -> None:
    _, seen = run(0.25, 2000, 0.1, dict.fromkeys(COSTS, 1e-5))
    assert seen["step"] == list(range(1, 2001)) == seen["identity"]
    assert (
        seen["probe"][:6] == [1, 2, 3, 4, 5, 6]
        and max(b - a for a, b in zip(seen["probe"], seen["probe"][1:], strict=False)) == 50
    )
    assert max(b - a for a, b in zip(seen["noise"], seen["noise"][1:], strict=False)) == 200
    # Groups that thin out are read at logarithmic times.
    assert len([s for s in seen["proof"] if 100 <= s < 1000]) == pytest.approx(9, abs=1)


def test_a_smaller_budget_stretches_the_intervals() -> None:
    counts = [len(run(budget, 5000, 3e-3, COSTS)[1]["step"]) for budget in (0.02, 0.05, 0.25)]
    assert counts[0] < counts[1] < counts[2]
    assert counts[1] < 5000


def test_what_one_group_does_not_need_goes_to_the_others() -> None:
    free = {**COSTS, "probe": 1e-6, "noise": 1e-6, "proof": 1e-6, "spectrum": 1e-6, "identity": 1e-6}
    alone, shared = run(0.05, 5000, 3e-3, free)[1]["step"], run(0.05, 5000, 3e-3, COSTS)[1]["step"]
    assert len(alone) > 1.5 * len(shared)


def test_a_pause_pays_for_no_more_than_ten_steps() -> None:
    controller, _ = run(0.05, 1000, 3e-3, COSTS, {500: 3600.0})
    assert controller.training == pytest.approx(3.0, rel=0.5)
    assert controller.own <= 0.05 * (controller.training + ADVANCE)


def test_bookkeeping_is_paid_too() -> None:
    controller, seen = run(0.05, 5000, 3e-3, COSTS, idle=1e-4)
    assert controller.own <= 0.05 * (controller.training + ADVANCE) * 1.01
    assert len(seen["step"]) > 10


def test_a_reading_that_got_dearer_is_paid_back_by_waiting() -> None:
    costs = dict(COSTS)
    clock = Clock()
    controller = Controller(0.05, accounts(("step",)), clock)
    controller.accounts[0].read(0, 1e-4, paid=False)
    controller.start(0)
    for number in range(1, 20_001):
        clock.now += 1e-3
        if number < controller.wake:
            continue
        entered = controller.enter(number)
        charged = 0.0
        for account in controller.due(number):
            costs["step"] = 1e-4 if number < 5000 else 1e-2
            clock.now += costs["step"]
            charged = costs["step"]
            account.read(number, charged)
        controller.sleep(number)
        controller.leave(entered, charged)
    assert controller.own <= 0.05 * (controller.training + ADVANCE) + 2e-2


def test_steps_at_which_nothing_is_due_are_slept_through() -> None:
    clock = Clock()
    controller = Controller(0.02, accounts(("proof",)), clock)
    controller.accounts[0].read(0, 10.0, paid=False)
    controller.start(0)
    awake = 0
    for number in range(1, 20_001):
        clock.now += 1e-3
        if number >= controller.wake:
            awake += 1
            entered = controller.enter(number)
            assert not controller.due(number)
            controller.sleep(number)
            controller.leave(entered)
    assert awake <= 20_000 / LONGEST_SLEEP + 5
    assert controller.training == pytest.approx(20.0, abs=LONGEST_SLEEP * 1e-3)


def test_overhead_is_own_time_over_training() -> None:
    clock = Clock()
    controller = Controller(0.5, accounts(("step",)), clock)
    controller.start(0)
    for number in range(1, 5):
        clock.now += 1.0
        entered = controller.enter(number)
        clock.now += 0.25
        controller.leave(entered)
    assert controller.overhead == pytest.approx(0.25)
    assert controller.recent_overhead() == pytest.approx(0.25) and controller.recent_overhead() == 0.0


def test_presets_and_an_explicit_budget_that_beats_them() -> None:
    assert [preset(name).budget for name in ("lite", "default", "research")] == [0.02, 0.05, 0.25]
    assert preset("lite", 0.5).budget == 0.5 and preset("lite", 0.5).groups == preset("lite").groups
    with pytest.raises(UsageError, match="expected a preset out of lite, default, research, got 'full'"):
        preset("full")
    assert preset("default", 1).budget == 1.0
    for wrong in (0.0, -1.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(UsageError, match=r"expected a budget above 0 and at most 1, .* leave the observer away"):
            preset("default", wrong)
    with pytest.raises(UsageError, match=r"such as 0.05 for 5 %, got 5; 5 % is budget=0.05"):
        preset("default", 5)


def test_a_rehearsal_counts_double_until_there_is_a_true_reading() -> None:
    (account,) = accounts(("identity",))
    account.read(0, 0.5, paid=False, rehearsed=True)
    assert (account.cost, account.balance) == (2 * 0.5, 0.0)
    account.read(7, 0.3)
    assert (account.cost, account.balance) == (0.3, -0.3)
    account.read(9, 0.4)
    assert account.cost == 0.4
