"""The last step of Lanczos' bound ends, whatever the Ritz value is."""

from __future__ import annotations

import math

import pytest

from lipscope.operator_norm.lanczos import Criterion, _smallest


class Never(Criterion):
    """A criterion that no value meets."""

    def __init__(self) -> None:
        self.calls = 0

    def meets(self, value: float) -> bool:
        self.calls += 1
        assert self.calls < 10_000
        return False


class Above(Criterion):
    """A criterion that values above an edge meet."""

    def __init__(self, edge: float) -> None:
        self.edge = edge

    def meets(self, value: float) -> bool:
        return value >= self.edge


@pytest.mark.parametrize("ritz", [0.0, -1.0, math.nan, math.inf])
def test_ritz_values_that_are_not_positive_numbers_give_no_bound(ritz: float) -> None:
    criterion = Never()
    assert _smallest(criterion, ritz, 1.0, lambda: False) is None


@pytest.mark.parametrize("bound", [1.0, math.inf, math.nan])
def test_the_search_ends_where_no_value_is_good_enough(bound: float) -> None:
    criterion = Never()
    assert _smallest(criterion, 0.5, bound, lambda: False) is None


def test_the_search_ends_when_time_is_up() -> None:
    criterion = Never()
    assert _smallest(criterion, 1e-300, 1.0, lambda: True) is None
    assert criterion.calls < 40


def test_the_value_found_is_close_to_the_edge() -> None:
    criterion = Above(1.001)
    found = _smallest(criterion, 1.0, 10.0, lambda: False)
    assert found is not None and 1.001 <= found <= 1.0011
