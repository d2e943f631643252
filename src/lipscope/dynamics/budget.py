"""What the observer may cost, and what it therefore looks at at a step: accounts that training pays into.

Each group of quantities has an account. Every second of training pays `budget` seconds into the accounts, by the groups'
shares; what an account cannot use (it holds enough for three of its readings) flows on to the others. A group is read
at a step if it is due by its own schedule and its account holds what a reading costs, so that the observer's time in
the loop stays below `budget` times the time of training, up to the one reading that was more expensive than the last.

Schedules are logarithmic at first: after a reading at step t the next is due at `t + GROWTH t`, but not after
`t + interval`; for groups that thin out, not before it.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lipscope.claims.errors import UsageError

GROWTH = 0.3
"""How far, relative to the step, the next reading is at first."""

SAFETY = 0.9
"""The share of the budget that is spent: a reading may cost more than the one before it."""

ADVANCE = 0.1
"""Seconds of training that are taken as paid when the run begins, so that the first steps are seen."""

FAR = 2.0
"""A first observed step takes about this many times its rehearsal, which begins nearer to what is known."""

PAUSE = 10.0
"""A gap between two steps that is this many times the usual one is a pause (an evaluation, a notebook) and pays nothing
beyond that."""

LONGEST_SLEEP = 500
"""Steps after which the books are looked at in any case."""


@dataclass(frozen=True)
class Preset:
    """A name for a budget and the groups that are read.

    Attributes:
        budget: the observer's time as a share of the time of training.
        groups: names of the groups.
    """

    budget: float
    groups: tuple[str, ...]


PRESETS: Mapping[str, Preset] = {
    "lite": Preset(0.02, ("step", "probe")),
    "default": Preset(0.05, ("step", "identity", "probe", "noise", "proof", "norms", "spectrum")),
    "research": Preset(0.25, ("step", "identity", "probe", "noise", "proof", "norms", "spectrum")),
}


def preset(name: str, budget: float | None = None) -> Preset:
    """The preset of that name; an explicit budget beats its own.

    Raises:
        UsageError: there is no such preset, or the budget is not a share.
    """
    if name not in PRESETS:
        raise UsageError(f"expected a preset out of {', '.join(PRESETS)}, got {name!r}")
    if budget is None:
        return PRESETS[name]
    if isinstance(budget, bool) or not (isinstance(budget, int | float) and 0 < budget <= 1):
        meant = (
            f"; {budget:g} % is budget={budget / 100:g}"
            if isinstance(budget, int | float) and 1 < budget <= 100
            else ""
        )
        raise UsageError(
            f"expected a budget above 0 and at most 1, a share of the time of training such as 0.05 for 5 %, got {budget!r}"
            f"{meant or '; to observe nothing, leave the observer away'}"
        )
    return Preset(float(budget), PRESETS[name].groups)


@dataclass
class Account:
    """One group of quantities.

    Attributes:
        name: of the group.
        share: of the budget that is paid in here first.
        interval: steps between two readings where money is no object.
        thins: whether the interval grows with the step (readings at logarithmic times) instead of ending at `interval`.
        balance: seconds that may be spent.
        cost: seconds, the median of the last five readings; None before the first.
        next: the step from which on the group is due.
        last: the step of the last reading.
        readings: how many there were.
        gap: steps between the last two.
        saves: seconds that may be put by for a dear reading, whatever the last ones have cost.
    """

    name: str
    share: float
    interval: int
    thins: bool = False
    balance: float = 0.0
    cost: float | None = None
    next: int = 0
    last: int = -1
    readings: int = 0
    gap: int = 0
    saves: float = 0.0
    _guessed: bool = False
    _costs: deque[float] = field(default_factory=lambda: deque(maxlen=5))

    @property
    def cap(self) -> float:
        """More than this the account does not need."""
        return math.inf if self.cost is None else max(3.0 * self.cost, self.saves, 1e-4)

    def read(self, step: int, cost: float, paid: bool = True, rehearsed: bool = False) -> None:
        """A reading at a step has cost so many seconds.

        Args:
            step: when.
            cost: seconds.
            paid: taken from the balance, unlike readings before training.
            rehearsed: the reading was of nothing that happened; what the first true one costs takes its place.
        """
        if paid:
            self.balance -= cost
        if self._guessed:
            self._costs.clear()
        self._guessed = rehearsed
        self._costs.append(FAR * cost if rehearsed else cost)
        self.cost = statistics.median_high(self._costs)
        self.gap = 0 if self.last < 0 else step - self.last
        self.last, self.readings = step, self.readings + 1
        wait = max(1, int(step * GROWTH))
        self.next = step + (max(wait, self.interval) if self.thins else min(wait, self.interval))


def accounts(groups: tuple[str, ...]) -> list[Account]:
    """Accounts of the groups, shares as below and made to sum to 1."""
    table = {
        "step": Account("step", 0.25, 1),
        "identity": Account("identity", 0.5, 1),
        "probe": Account("probe", 0.25, 50),
        "noise": Account("noise", 0.1, 200),
        "proof": Account("proof", 0.15, 10, thins=True),
        "norms": Account("norms", 0.1, 20),
        "spectrum": Account("spectrum", 0.1, 10, thins=True),
        "extra": Account("extra", 0.2, 50),
    }
    chosen = [table[name] for name in groups]
    total = sum(account.share for account in chosen)
    for account in chosen:
        account.share /= total
    return chosen


@dataclass
class Controller:
    """Decides what is read at a step and keeps the books.

    A step at which nothing can be due costs one comparison: `wake` is the next step at which anything may be.

    Attributes:
        budget: the observer's time as a share of the time of training.
        accounts: one a group.
        clock: seconds.
        training: seconds of training so far, without the observer's.
        own: seconds of the observer inside the loop so far.
        wake: the next step that is looked at.
    """

    budget: float
    accounts: list[Account]
    clock: Callable[[], float]
    training: float = 0.0
    own: float = 0.0
    wake: int = 0
    _usual: float | None = None
    _left: float = 0.0
    _step: int = 0
    _recent: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for account in self.accounts:
            account.balance = SAFETY * self.budget * ADVANCE * account.share

    def start(self, step: int) -> None:
        """Training begins now, after so many steps; what was before is not counted."""
        self._left, self._step, self.wake = self.clock(), step, step + 1

    def enter(self, step: int, whole: bool = True) -> float:
        """The observer takes over before or within `step`: what has passed since it left was training. Returns the time.

        Args:
            step: counted from 1.
            whole: whether that was whole steps, from which the usual length of a step is learnt.
        """
        now = self.clock()
        gap, steps = max(now - self._left, 0.0), max(step - self._step, 1)
        counted = gap if self._usual is None else min(gap, PAUSE * self._usual * steps)
        if whole:
            each = counted / steps
            self._usual = each if self._usual is None else self._usual + min(0.05 * steps, 0.5) * (each - self._usual)
        self._step = step
        self.training += counted
        self._earn(SAFETY * self.budget * counted)
        return now

    def aside(self, seconds: float) -> None:
        """So many seconds since the observer left were its own, too."""
        self.own += seconds
        self._left += seconds

    def leave(self, entered: float, charged: float = 0.0) -> None:
        """Training goes on. What was spent since `entered` beyond what groups were `charged` is shared by all."""
        now = self.clock()
        spent = max(now - entered, 0.0)
        self.own += spent
        for account in self.accounts:
            account.balance -= max(spent - charged, 0.0) * account.share
        self._left = now

    def due(self, step: int) -> list[Account]:
        """The groups to be read at a step: due by their schedule, and affordable."""
        return [a for a in self.accounts if step >= a.next and a.balance >= (a.cost or 0.0) and a.balance > 0]

    def sleep(self, step: int) -> None:
        """Find the next step after `step` that something may be due at, if steps take as long as they usually do."""
        earned = SAFETY * self.budget * (self._usual or 0.0)
        waits = [LONGEST_SLEEP]
        for account in self.accounts:
            missing = (account.cost or 0.0) - account.balance
            pay = earned * account.share
            afford = 1 if missing <= 0 else math.ceil(min(missing / pay, LONGEST_SLEEP)) if pay > 0 else 1
            waits.append(max(account.next - step, afford, 1))
        self.wake = step + min(waits)

    @property
    def overhead(self) -> float:
        """The observer's time in the loop as a share of the time of training."""
        return self.own / self.training if self.training > 0 else 0.0

    def recent_overhead(self) -> float:
        """The same since this was last asked."""
        own, training = self._recent
        self._recent = (self.own, self.training)
        return (self.own - own) / (self.training - training) if self.training > training else 0.0

    def _earn(self, amount: float) -> None:
        """Pay in by shares; what is above an account's cap goes to those that are below theirs, the rest to nobody."""
        below = [a for a in self.accounts if a.balance < a.cap]
        while amount > 0 and below:
            total = sum(a.share for a in below)
            spill = 0.0
            for account in below:
                part, room = amount * account.share / total, account.cap - account.balance
                account.balance += min(part, room)
                spill += max(part - room, 0.0)
            amount, below = spill, [a for a in below if a.balance < a.cap]
