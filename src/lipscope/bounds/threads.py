"""How many threads linear algebra gets.

The searches make thousands of operations on small matrices. Shared out to threads each takes longer than in one, and numpy and scipy
bring a pool of threads each, whose threads go on spinning for a while after their work is done: on two cores a search with both takes many
times as long. So methods run with one thread, and only what is done to large matrices gets as many as there were.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import scipy.linalg  # noqa: F401 - its library must be there when the libraries are looked for
from threadpoolctl import ThreadpoolController

LARGE = 500
"""The size of matrices from which more threads are faster."""


class _Pools:
    """The libraries' numbers of threads; they are the process's, so callers in other threads are counted."""

    def __init__(self) -> None:
        self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[int] = []

    def enter(self) -> None:
        """One thread from now on."""
        with self._lock:
            if self._inside == 0:
                self._before = self.numbers()
            self._inside += 1
        self.put([1] * len(self._libraries))

    def leave(self) -> None:
        """The caller is done. Whoever leaves gives back what the first one found: a library may not listen to the others."""
        with self._lock:
            self._inside -= 1
            self.put(self._before)

    @property
    def inside(self) -> bool:
        """Whether anybody has entered."""
        return self._inside > 0

    def many(self) -> None:
        """As many as there were."""
        self.put(self._before)

    def numbers(self) -> list[int]:
        """Of every library now."""
        return [library.get_num_threads() for library in self._libraries]

    def put(self, numbers: Sequence[int]) -> None:
        """These from now on."""
        for library, number in zip(self._libraries, numbers, strict=True):
            library.set_num_threads(number)


@cache
def _pools() -> _Pools:
    return _Pools()


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra in one thread."""
    pools = _pools()
    pools.enter()
    try:
        yield
    finally:
        pools.leave()


@contextmanager
def threads_for(size: int) -> Iterator[None]:
    """Inside `one_thread`: as many threads as there were before it if the matrices in hand are large. Elsewhere this changes nothing.

    Args:
        size: of the matrices.
    """
    pools = _pools()
    if size < LARGE or not pools.inside:
        yield
        return
    now = pools.numbers()
    pools.many()
    try:
        yield
    finally:
        pools.put(now)
