"""Leaves that grow side by side: in this process, and once that takes long in others, each with one thread."""

from __future__ import annotations

import itertools
import os
import pickle
import time
from collections.abc import Sequence
from contextlib import ExitStack

import joblib
import numpy as np
from numpy.typing import NDArray

from lipscope.bounds.branch.skeleton import Skeleton
from lipscope.bounds.branch.tree import Branch, Gardener, Growth
from lipscope.bounds.threads import one_thread
from lipscope.claims.norms import Norm

PATIENCE = 2.0
"""Seconds before other processes are started: what is closed by then does not need them."""

_numbers = itertools.count()
_held: dict[tuple[int, int], Gardener] = {}
"""In a process that was started for it, who examines the cells of the last skeleton."""


class Workers:
    """Lets leaves grow, in whatever process with one thread for linear algebra: the answers do not depend on how many there are."""

    def __init__(self, skeleton: Skeleton, norm: Norm, jobs: int) -> None:
        self.here = Gardener(skeleton, norm)
        self._jobs = jobs
        self._began = time.monotonic()
        self._stack = ExitStack()
        self._pool: joblib.Parallel | None = None
        self._key = (os.getpid(), next(_numbers))
        self._packed = np.zeros(0, dtype=np.uint8)

    def __enter__(self) -> Workers:
        self._stack.enter_context(one_thread())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, leaves: Sequence[Branch], target: float, deadline: float) -> list[Growth]:
        """What has grown from each leaf."""
        late = time.monotonic() - self._began > PATIENCE
        if self._pool is None and self._jobs > 1 and len(leaves) > 1 and late:
            # As an array, since large ones are shared instead of sent with every leaf.
            packed = pickle.dumps((self.here.skeleton, self.here.norm))
            self._packed = np.frombuffer(packed, dtype=np.uint8)
            # The backend's processes get one thread each for linear algebra.
            self._stack.enter_context(joblib.parallel_config(backend="loky", inner_max_num_threads=1))
            self._pool = self._stack.enter_context(joblib.Parallel(n_jobs=self._jobs, batch_size=1))
        if self._pool is None:
            return [self.here.grow(leaf, target, deadline) for leaf in leaves]
        grow = joblib.delayed(_grow)
        found: list[Growth] = self._pool(grow(self._key, self._packed, leaf, target, deadline) for leaf in leaves)
        return found


def _grow(
    key: tuple[int, int], packed: NDArray[np.uint8], leaf: Branch, target: float, deadline: float
) -> Growth:  # fmt: skip
    """`Gardener.grow` in a process of its own."""
    if key not in _held:
        _held.clear()
        _held[key] = Gardener(*pickle.loads(packed.tobytes()))
    return _held[key].grow(leaf, target, deadline)
