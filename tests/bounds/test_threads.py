"""How many threads linear algebra gets while methods run, and that it has them back afterwards."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from lipscope import bound, load
from lipscope.bounds.method import Candidate, Effort, Method
from lipscope.bounds.problem import NoBound, Problem, pose
from lipscope.bounds.threads import LARGE, one_thread, threads_for
from lipscope.claims.claim import Claim


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def three() -> object:
    """The process's libraries with three threads each, whatever the machine has."""
    with threadpool_limits(3, user_api="blas"):
        assert threads() == {3}
        yield


class Looks(Method):
    name = "looks"
    seen: set[int]

    def accepts(self, problem: Problem) -> str | None:
        return None

    def search(self, problem: Problem, effort: Effort) -> Candidate:
        self.seen = threads()
        raise NoBound(0, "x", "it only looks")


def test_methods_run_with_one_thread_and_leave_as_many_as_there_were(three: object) -> None:
    method = Looks()
    problem = pose(load(nn.Linear(2, 2).double().eval(), input_shape=(2,)).graph, Claim("l2"))
    assert method.run(problem, Effort()).value is None
    assert method.seen == {1} and threads() == {3}


def test_large_matrices_get_all_of_them_and_small_ones_one(three: object) -> None:
    with one_thread():
        with threads_for(LARGE):
            assert threads() == {3}
            with threads_for(LARGE - 1):
                assert threads() == {3}, "it does not take what a large matrix around it has"
            with threads_for(LARGE + 1):
                assert threads() == {3}
            assert threads() == {3}
        assert threads() == {1}
    assert threads() == {3}


def test_outside_of_methods_nothing_changes(three: object) -> None:
    with threads_for(10 * LARGE):
        assert threads() == {3}
    assert threads() == {3}


def test_two_callers_give_back_what_the_first_one_found(three: object) -> None:
    """Two threads of one process: if each restored what it had found, the second to leave would leave the process with one."""
    entered, may_leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread():
            entered.set()
            assert may_leave.wait(20)

    second = threading.Thread(target=other)
    with one_thread():
        second.start()
        assert entered.wait(20)
    assert threads() == {3}
    may_leave.set()
    second.join()
    assert threads() == {3}


def test_a_failure_gives_them_back(three: object) -> None:
    with pytest.raises(ZeroDivisionError), one_thread(), threads_for(LARGE):
        raise ZeroDivisionError
    assert threads() == {3}


def test_bounds_do_not_depend_on_the_number_of_threads() -> None:
    generator = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)).double().eval()
    for weights in model.parameters():
        weights.data.copy_(weights.data.new_tensor(generator.standard_normal(tuple(weights.shape)) / 4))
    found = []
    for number in (1, 2):
        with threadpool_limits(number, user_api="blas"):
            found.append(bound(load(model, input_shape=(12,)), "l2", method="lipsdp").upper.value)
    assert found[0] == found[1]
