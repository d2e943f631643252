"""`auto`: the order of the methods, what is left out, and who may spend how much."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from lipscope import Box, load
from lipscope.bounds import auto
from lipscope.bounds.auto import candidates
from lipscope.bounds.method import Candidate, Effort, Method
from lipscope.bounds.problem import Problem, pose
from lipscope.claims.claim import Claim, Output


def posed(norm: str = "linf") -> Problem:
    torch.manual_seed(0)
    linear, relu = torch.nn.Linear, torch.nn.ReLU
    model = torch.nn.Sequential(linear(2, 6), relu(), linear(6, 6), relu(), linear(6, 2)).eval()
    return pose(load(model, input_shape=(2,)).graph, Claim(norm, Box(-np.ones(2), np.ones(2)), Output()))


def within(seconds: float) -> Effort:
    return Effort(deadline=time.monotonic() + seconds)


def test_boxes_are_not_cut_where_branch_has_closed_the_interval() -> None:
    found = list(candidates(posed(), within(20)))
    names = [c.method for c in found]
    assert len(names) == len(set(names)) and names[-1] == "branch"
    value = {c.method: c.value for c in found}
    assert value["branch"] is not None and value["local"] is not None and value["branch"] <= value["local"]


def test_boxes_come_last_where_branch_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = posed()
    monkeypatch.setattr(auto, "AUTO", tuple(m for m in auto.AUTO if m.name != "branch"))
    found = list(candidates(problem, within(20)))
    first, last = (c for c in found if c.method == "local")
    assert found[-1] is last and first.value is not None and last.value is not None
    assert last.value < first.value and "boxes" in last.note and "boxes" not in first.note


def test_an_answer_that_comes_twice_is_told_once() -> None:
    names = [c.method for c in candidates(posed("l2"), within(20))]
    assert len(names) == len(set(names)) == len(auto.METHODS)


class Waits(Method):
    """Tells how much time it was given."""

    def __init__(self, name: str, told: list[float]) -> None:
        self.name, self.told = name, told

    def accepts(self, problem: Problem) -> str | None:
        return None

    def search(self, problem: Problem, effort: Effort) -> Candidate:
        self.told.append(effort.deadline - time.monotonic())
        return Candidate(self.name, 1.0, 0.0, points=(np.array([0.5, -0.5]),))


def test_what_one_method_saw_is_data_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Problem] = []

    class Looks(Waits):
        def search(self, problem: Problem, effort: Effort) -> Candidate:
            seen.append(problem)
            return super().search(problem, effort)

    told: list[float] = []
    monkeypatch.setattr(auto, "AUTO", (Waits("a", told), Looks("b", told)))
    problem = posed()
    assert [c.method for c in candidates(problem, within(10))] == ["a", "b"]
    assert torch.equal(seen[0].data[0], torch.tensor([0.5, -0.5], dtype=torch.float64))
    assert len(seen[0].data) == len(problem.data) + 1 and min(told) > 9
    assert problem.with_points(()) is problem


def test_none_is_begun_after_the_deadline_once_there_is_a_bound() -> None:
    found = list(candidates(posed(), within(-1)))
    assert found[0].value is not None and all("not begun" in c.note for c in found[1:])
    assert [c.method for c in found] == [m.name for m in auto.METHODS]
