"""Regressions on the full batch, one run a seed, as the studies of which frequency is learned first follow them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lipscope.claims.errors import Interrupted

Runs = list[dict[str, Any]]
"""What was found in each run that was done, in order."""


def each_seed(
    seeds: Sequence[int], run: Callable[[int, float], dict[str, Any]], summary: Callable[[Runs], dict[str, object]]
) -> dict[str, object]:
    """The summary of the runs of all seeds.

    Args:
        seeds: in order.
        run: takes a seed and the share of the seeds that are done.
        summary: of the runs that were done, also if there are none.

    Raises:
        Interrupted: the user stopped it; its result is the summary of the runs that were done.
    """
    runs: Runs = []
    try:
        for number, seed in enumerate(seeds):
            runs.append(run(seed, number / len(seeds)))
    except KeyboardInterrupt:
        raise Interrupted(f"stopped after {len(runs)} of {len(seeds)} seeds", summary(runs)) from None
    return summary(runs)


def descent(model: nn.Module, x: Tensor, y: Tensor, rate: float, steps: int) -> Iterator[tuple[int, float]]:
    """Minimise the mean squared error on (x, y) by `steps` steps of Adam, each on all points.

    Yields:
        The number of steps made, 0 to `steps`, and the loss after them; the model then is as these steps left it.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps + 1):
        loss = nn.functional.mse_loss(model(x), y)
        yield step, loss.item()
        if step < steps:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
