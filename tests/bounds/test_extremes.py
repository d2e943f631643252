"""Numbers near the ends of float64: a bound that is accepted, or a clear refusal; nothing from linear algebra."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lipscope import bound, load
from lipscope.certificate.result import Result
from lipscope.claims.errors import UsageError
from lipscope.claims.regions import Ball, Box, parse_region


def deep(depth: int, scale: float) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(4, 4), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(scale)
    return model


def wide(scale: float) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double().eval()
    with torch.no_grad():
        for layer in list(model)[::2]:
            layer.weight.mul_(scale)  # type: ignore[operator, union-attr]
    return model


def run(model: nn.Module, size: int, **more: object) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return bound(load(model, input_shape=(size,)), budget=3, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth, scale", [(40, 1e-4), (20, 1e-4), (30, 1e4), (120, 1.0)])
def test_deep_networks_of_tiny_and_huge_products_end_with_a_bound_that_is_accepted(depth: int, scale: float) -> None:
    """Where the checker refuses the best bound, since underflow may matter in it, the best of the others is the answer."""
    model = deep(depth, scale)
    result = run(model, 4)
    assert result.upper.status == "certified" and result.upper.value is not None
    smaller = [c for c in result.candidates if c.value is not None and c.value < result.upper.value]
    refused = [w for w in result.warnings if "the checker refuses" in w]
    assert bool(refused) == bool(smaller), (refused, smaller)
    if smaller:
        assert repr(min(c.value for c in smaller if c.value is not None)) in refused[0]


@pytest.mark.parametrize("method", ["product", "lipsdp", "branch", "auto"])
@pytest.mark.parametrize("scale", [1e60, 1e-60])
def test_the_lower_bound_does_not_take_the_upper_one_with_it(method: str, scale: float) -> None:
    result = run(wide(scale), 3, method=method)
    plain = run(wide(1.0), 3, method="product")
    assert result.upper.value is not None or result.upper.reason
    if method in ("product", "auto"):
        assert result.upper.value is not None and plain.upper.value is not None
        assert result.upper.value <= plain.upper.value * scale**3 * (1 + 1e-9)
    if scale > 1 and result.upper.value is not None:
        assert 0 < result.lower <= result.upper.value


@pytest.mark.parametrize("method", ["auto", "product", "absolute", "lipsdp", "eclipse", "eclipse-fast"])
@pytest.mark.parametrize("function, center", [(nn.Tanh(), 360.0), (nn.Sigmoid(), -740.0), (nn.Sigmoid(), 1e4)])
def test_saturated_functions_have_bounds(function: nn.Module, center: float, method: str) -> None:
    """Their slopes are above 0 by less than products of float64 numbers can be."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), function, nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[0].bias.zero_()
    result = run(model, 2, region=Box(np.full(2, center - 0.5), np.full(2, center + 0.5)), method=method)
    assert result.upper.value is not None and 0 < result.upper.value < 1e-90
    if method in ("auto", "product", "absolute"):
        assert result.upper.status == "certified"


@pytest.mark.parametrize("region", ["box:-1.7e308,1.7e308", "box:0,2e300"])
def test_regions_without_room_in_float64_are_refused(region: str) -> None:
    with pytest.raises(UsageError, match=r"within 1e\+300 of 0, got .*; everywhere has no ends"):
        parse_region(region, 3, "l2")


@pytest.mark.parametrize("center, radius", [(0.0, 1.7e308), (0.0, 6e299), (6e299, 1.0)])
def test_balls_without_room_in_float64_are_refused(center: float, radius: float) -> None:
    with pytest.raises(UsageError, match="everywhere has no ends"):
        Ball(np.full(2, center), radius)


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("radius", [1e9, 4e299])
def test_branch_takes_large_balls_without_warnings(norm: str, radius: float) -> None:
    model = wide(1.0)
    result = run(model, 3, norm=norm, region=Ball(np.zeros(3), radius), method="branch")
    everywhere = run(model, 3, norm=norm, method="product")
    assert result.upper.status == "certified" and result.upper.value is not None
    assert everywhere.upper.value is not None and result.upper.value <= everywhere.upper.value


@pytest.mark.parametrize("radius", [np.array("abc"), np.array(1 + 2j), np.array(b"1")])
def test_a_radius_that_is_no_number_is_refused(tmp_path: Path, radius: np.ndarray) -> None:
    np.savez(tmp_path / "ball.npz", center=np.zeros(3), radius=radius)
    with pytest.raises(UsageError, match="expected numbers in a region's file"):
        parse_region(f"ball:{tmp_path / 'ball.npz'}", 3, "l2")
