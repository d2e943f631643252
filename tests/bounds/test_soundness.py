"""lower <= exact <= upper on every network of the table, in three norms, everywhere and on boxes, with zero slack."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch

from harness.exact import (
    Exact,
    linear_map,
    matrix_norm,
    one_dimensional,
    one_hidden_layer,
    sampled_lower,
)  # fmt: skip
from harness.expect import expect_lower, expect_upper
from harness.networks import BY_NAME, NETWORKS
from lipscope import bound, load
from lipscope.claims.regions import Box

NORMS = ("l1", "l2", "linf")
FIRST = {"l1": "product", "l2": "lipsdp", "linf": "product"}
"""What the table is walked with here; the other methods walk it in tests of their own."""


@cache
def loaded(name: str):
    network = BY_NAME[name]
    return load(network.module(), input_shape=network.shape)


def boxes(size: int) -> dict[str, Box | None]:
    center = np.random.default_rng(3).standard_normal(size) * 0.3
    return {"everywhere": None, "small": Box(center - 0.05, center + 0.05), "large": Box(center - 1, center + 2)}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", [n.name for n in NETWORKS])
def test_never_below_sampled_and_never_above_the_upper(name: str, norm: str) -> None:
    """Dense sampling is a lower bound of the truth; so is ours; neither may pass the upper bound."""
    network = BY_NAME[name]
    module = network.module()
    for where, box in boxes(math.prod(network.shape)).items():
        place = "everywhere" if box is None else box
        result = bound(loaded(name), norm, place, method=FIRST[norm], budget=2, check=False)
        truth = sampled_lower(module, network.shape, norm, box and (box.lower, box.upper), count=25)
        expect_upper(result.upper.value, truth, f"{name} {norm} {where}")
        expect_upper(result.upper.value, result.lower, f"{name} {norm} {where}: own witness")


EXACT_NETWORKS = {
    "one-hidden": (0.0, 1.0), "scalar-output": (0.0, 1.0), "no-bias": (0.0, 1.0), "leaky": (0.2, 1.0),
    "leaky-steep": (1.0, 3.0), "leaky-negative": (-1.5, 1.0), "prelu-steep": (1.0, float(torch.tensor(1.7))), "hardtanh": (0.0, 1.0),
    "batchnorm": (0.0, 1.0), "conv-batchnorm": (0.0, 1.0),
    "conv-few-stride": (0.0, 1.0), "conv-few-even": (0.0, 1.0), "conv-few-dilated": (0.0, 1.0),
    "conv-few-rectangular": (0.0, 1.0), "conv-few-groups": (0.0, 1.0),
}  # fmt: skip


def oracle(name: str, norm: str) -> Exact:
    """The exact constant of a network with one hidden layer whose first map has full row rank."""
    network = BY_NAME[name]
    module, slopes = network.module(), EXACT_NETWORKS[name]
    layers = list(module.children())
    split = next(i for i, layer in enumerate(layers) if "activation" in type(layer).__module__)
    first = torch.nn.Sequential(*layers[:split])
    hidden = first(torch.zeros(1, *network.shape, dtype=torch.float64)).shape[1:]
    before = linear_map(first, network.shape)
    after = linear_map(torch.nn.Sequential(*layers[split + 1 :]), tuple(hidden))
    return one_hidden_layer(before, after, slopes, norm)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", EXACT_NETWORKS)
def test_against_enumeration_of_all_patterns(name: str, norm: str) -> None:
    exact = oracle(name, norm)
    result = bound(loaded(name), norm, method=FIRST[norm], budget=4, check=False)
    expect_upper(result.upper.value, exact.lo, f"{name} {norm}")
    expect_lower(result.lower, exact.hi, f"{name} {norm}")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "name", ["linear", "linear-chain", "average-pool-ceil", "average-pool-excluding", "zero-layer"]
)
def test_affine_networks_are_exact(name: str, norm: str) -> None:
    """Both ends meet at the norm of the unrolled matrix."""
    network = BY_NAME[name]
    truth = matrix_norm(linear_map(network.module(), network.shape), norm)
    result = bound(loaded(name), norm, method=FIRST[norm], budget=4, check=False)
    expect_upper(result.upper.value, truth * (1 - 1e-12), name)
    expect_lower(result.upper.value, truth * (1 + 1e-9), name)
    expect_upper(result.lower, truth * (1 - 1e-7), name)


@pytest.mark.parametrize("interval", [(-3.0, 4.0), (0.1, 0.12), (-20.0, 20.0)])
def test_one_input_against_all_its_pieces(interval: tuple[float, float]) -> None:
    network = BY_NAME["one-input"]
    exact = one_dimensional(network.module(), *interval, "l2")
    result = bound(
        loaded("one-input"), "l2", f"box:{interval[0]},{interval[1]}", method="lipsdp", budget=2, check=False
    )
    expect_upper(result.upper.value, exact.lo)
    expect_lower(result.lower, exact.hi)


@pytest.mark.parametrize("name", ["two-hidden", "residual", "conv", "gelu", "max-pool-overlap"])
def test_a_smaller_box_has_no_larger_bound(name: str) -> None:
    """The product bound is monotone: slopes and masks only shrink."""
    size = math.prod(BY_NAME[name].shape)
    values = [
        bound(loaded(name), "l2", Box(np.full(size, -r), np.full(size, r)), method="product", budget=4, check=False)
        for r in (1e-3, 0.1, 1.0, 10.0)
    ]
    values.append(bound(loaded(name), "l2", method="product", budget=4, check=False))
    for small, large in itertools.pairwise(values):
        expect_lower(small.upper.value, large.upper.value * (1 + 1e-9), name)


@pytest.mark.parametrize("name", ["one-hidden", "leaky-steep", "residual", "gelu", "conv"])
def test_a_point_box_away_from_kinks_gives_the_jacobian(name: str) -> None:
    network = BY_NAME[name]
    size = math.prod(network.shape)
    center = np.random.default_rng(11).standard_normal(size)
    from harness.exact import jacobian

    truth = matrix_norm(jacobian(network.module(), network.shape, torch.from_numpy(center)), "l2")
    result = bound(loaded(name), "l2", Box(center - 1e-7, center + 1e-7), method="lipsdp", budget=4, check=False)
    expect_upper(result.upper.value, truth * (1 - 1e-6), name)
    if not network.smooth:  # every unit is fixed: the network is affine there and the bound is exact
        expect_lower(result.upper.value, truth * (1 + 1e-6), name)


@pytest.mark.parametrize("output", ["0", "1", "1-0"])
def test_single_outputs(output: str) -> None:
    name = "one-hidden"
    network = BY_NAME[name]
    module = network.module()
    first, second = module[0].weight.detach().numpy(), module[2].weight.detach().numpy()
    row = {"0": second[:1], "1": second[1:2], "1-0": second[1:2] - second[:1]}[output]
    exact = one_hidden_layer(first, row, (0.0, 1.0), "l2")
    result = bound(loaded(name), "l2", output=output, method="lipsdp", budget=4, check=False)
    expect_upper(result.upper.value, exact.lo, output)
    expect_lower(result.lower, exact.hi, output)
