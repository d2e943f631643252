"""Cells examined side by side: in this process, and once that takes long in others, each with one thread."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from contextlib import ExitStack

import joblib

from lipscope.bounds.branch.examine import Finding, Task, examine, examine_packed
from lipscope.bounds.branch.points import Evaluator
from lipscope.bounds.branch.skeleton import Skeleton
from lipscope.bounds.threads import one_thread
from lipscope.claims.norms import Norm

PATIENCE = 2.0
"""Seconds before other processes are started: what is closed by then does not need them."""


class Workers:
    """Examines tasks in order, in whatever process with one thread for linear algebra: the answers do not depend on how many there are."""

    def __init__(self, skeleton: Skeleton, norm: Norm, jobs: int) -> None:
        self._skeleton = skeleton
        self._norm: Norm = norm
        self._jobs = jobs
        self._evaluator = Evaluator(skeleton, norm)
        self._began = time.monotonic()
        self._stack = ExitStack()
        self._pool: joblib.Parallel | None = None
        self._packed = b""

    def __enter__(self) -> Workers:
        self._stack.enter_context(one_thread())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __call__(self, tasks: Sequence[Task]) -> list[Finding]:
        """What is known of the tasks' cells."""
        late = time.monotonic() - self._began > PATIENCE
        if self._pool is None and self._jobs > 1 and len(tasks) > 1 and late:
            self._packed = pickle.dumps((self._skeleton, self._norm))
            # The backend's processes get one thread each for linear algebra.
            self._stack.enter_context(joblib.parallel_config(backend="loky", inner_max_num_threads=1))
            self._pool = self._stack.enter_context(joblib.Parallel(n_jobs=self._jobs))
        if self._pool is None:
            return [examine(self._skeleton, self._norm, self._evaluator, task) for task in tasks]
        found: list[Finding] = self._pool(joblib.delayed(examine_packed)(self._packed, task) for task in tasks)
        return found
