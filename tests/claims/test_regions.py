"""Regions: what is refused, and that a ball's box contains it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipscope.claims.claim import Output, parse_output
from lipscope.claims.errors import UsageError
from lipscope.claims.norms import parse_norm
from lipscope.claims.regions import Ball, Box, Everywhere, parse_region


def test_words() -> None:
    assert isinstance(parse_region("everywhere", 3, "l2"), Everywhere)
    box = parse_region("box:-1,2.5", 3, "l2")
    assert isinstance(box, Box)
    assert box.lower.tolist() == [-1.0] * 3
    assert box.upper.tolist() == [2.5] * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "box",
        "box:",
        "box:1",
        "box:a,b",
        "box:2,1",
        "box:nan,1",
        "box:-inf,inf",
        "box:missing.npz",
        "sphere:1,2",
        "everywhere:1",
        "ball:x.npz",
    ],
)
def test_wrong_words(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        parse_region(text, 3, "l2")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "box.npz"
    np.savez(path, lower=np.zeros((1, 2, 2), dtype=np.float32), upper=np.ones((1, 2, 2)))
    box = parse_region(f"box:{path}", 4, "l2")
    assert isinstance(box, Box)
    assert box.upper.tolist() == [1.0] * 4
    with pytest.raises(UsageError, match=r"with 5 entries.*got 4"):
        parse_region(f"box:{path}", 5, "l2")
    np.savez(path, center=np.zeros(2), radius=0.5, norm="linf")
    assert isinstance(parse_region(f"ball:{path}", 2, "linf"), Ball)
    with pytest.raises(UsageError, match="ball in the claim's norm l2, got one in linf"):
        parse_region(f"ball:{path}", 2, "l2")
    with pytest.raises(UsageError, match="arrays lower, upper"):
        parse_region(f"box:{path}", 2, "l2")
    np.savez(path, lower=np.zeros(2), upper=np.array([object(), object()]), allow_pickle=True)
    with pytest.raises(UsageError, match="expected"):
        parse_region(f"box:{path}", 2, "l2")
    path.write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(UsageError, match=r"expected an \.npz"):
        parse_region(f"box:{path}", 2, "l2")
    np.save(tmp_path / "single.npz.npy", np.zeros(3))
    with pytest.raises(UsageError, match="expected"):
        parse_region(f"box:{tmp_path / 'single.npz.npy'}", 3, "l2")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4), st.floats(0, 1e6))
def test_a_ball_lies_in_its_box(center: list[float], radius: float) -> None:
    box = Ball(np.array(center), radius).box()
    for c, low, high in zip(center, box.lower, box.upper, strict=True):
        assert Fraction(float(low)) <= Fraction(c) - Fraction(radius)
        assert Fraction(float(high)) >= Fraction(c) + Fraction(radius)


@pytest.mark.parametrize("radius", [-1.0, float("nan"), float("inf")])
def test_wrong_radius(radius: float) -> None:
    with pytest.raises(UsageError, match="finite radius >= 0"):
        Ball(np.zeros(2), radius)


def test_outputs() -> None:
    assert parse_output("all", 3) == Output()
    assert parse_output("2", 3) == Output(2)
    assert parse_output("2-0", 3) == Output(2, 0)
    for wrong in ("3", "0-3", "1-1", "-1", "a", "1-2-0", "", "1.0"):
        with pytest.raises(UsageError, match="expected"):
            parse_output(wrong, 3)


def test_norms() -> None:
    assert parse_norm("linf") == "linf"
    with pytest.raises(UsageError, match="l1, l2, linf, got 'l3'"):
        parse_norm("l3")
