"""What the observer says of itself: its cost, and how much it has read."""

from __future__ import annotations

import torch

from lipscope.claims.quantity import Reading
from lipscope.dynamics.budget import Controller


class SelfReport:
    """Counts what is read in one session.

    Args:
        controller: with the books.
        optimizer: whose learning rate is told.
        first: the step that the session began at.
    """

    def __init__(self, controller: Controller, optimizer: torch.optim.Optimizer, first: int) -> None:
        self._controller, self._optimizer, self._first = controller, optimizer, first
        self._steps = 0
        self._values = 0

    def count(self, values: int) -> None:
        """At one more step so many values were read."""
        self._steps += 1
        self._values += values

    def readings(self, step: int) -> list[tuple[str, Reading]]:
        """Of this moment, as rows of the quantity `observer`."""
        controller = self._controller
        found = [
            _own("overhead", controller.overhead, "of the time of training, since the loop began"),
            _own("overhead_recent", controller.recent_overhead(), "since the last observed step"),
        ]
        if controller.training > 0:
            rate = self._values / (controller.training / 60)
            found.append(_own("values_per_minute", rate, "of training, in this session"))
        if step > self._first:
            share = self._steps / (step - self._first)
            found.append(_own("steps_read", share, "share of this session's steps with any reading"))
        if (speed := self._optimizer.param_groups[0].get("lr")) is not None:
            found.append(_own("learning_rate", float(speed), "of the first parameter group"))
        found += [
            _own("interval", float(account.gap), "steps since the last", account.name)
            for account in controller.accounts
            if account.last == step and account.gap
        ]
        return [("observer", reading) for reading in found]


def _own(name: str, value: float, note: str, layer: str = "") -> Reading:
    return Reading(name, value, "measured", layer, note=note)
