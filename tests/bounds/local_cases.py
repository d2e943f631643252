"""Problems and results for the tests of local bounds, without the search for a lower bound."""

from __future__ import annotations

import math
import time
from functools import cache

import numpy as np
import torch

from harness.networks import BY_NAME
from lipscope import Ball, Box, load
from lipscope.bounds.absolute import Absolute
from lipscope.bounds.local.method import LocalJacobian
from lipscope.bounds.method import Candidate, Effort, Method
from lipscope.bounds.problem import Problem, pose
from lipscope.bounds.product import Product
from lipscope.certificate.result import Result, Upper
from lipscope.claims.claim import Claim, Output
from lipscope.claims.regions import Everywhere, Region
from lipscope.network.graph import Graph

METHODS: dict[str, Method] = {
    "absolute": Absolute(),
    "local": LocalJacobian(boxes=1),
    "boxes": LocalJacobian(boxes=24),
    "product": Product(),
}


@cache
def graph(name: str) -> Graph:
    network = BY_NAME[name]
    return load(network.module(), input_shape=network.shape).graph


def region(kind: str, size: int) -> Region:
    center = np.random.default_rng(3).standard_normal(size) * 0.3
    return {
        "everywhere": Everywhere(), "small": Box(center - 0.05, center + 0.05), "large": Box(center - 1, center + 2),
        "ball": Ball(center, 0.4),
    }[kind]  # fmt: skip


def problem(name: str, norm: str, kind: str) -> Problem:
    return pose(graph(name), Claim(norm, region(kind, math.prod(BY_NAME[name].shape)), Output()))


def search(posed: Problem, method: str, seconds: float = 1e6) -> Candidate:
    return METHODS[method].run(posed, Effort(deadline=time.monotonic() + seconds))


def result(posed: Problem, method: str, seconds: float = 1e6) -> Result:
    found = search(posed, method, seconds)
    return Result(posed, Upper(found.value, method, "computed"), found, None, None, (found,))


def points(where: Region, norm: str, size: int, count: int, seed: int = 0) -> torch.Tensor:
    """Points of a bounded region, many of them on its border."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(where, Box):
        share = torch.rand((count, size), generator=generator, dtype=torch.float64) * 1.4 - 0.2
        low, high = torch.from_numpy(where.lower), torch.from_numpy(where.upper)
        return (low + (high - low) * share).clamp(low, high)
    assert isinstance(where, Ball)
    step = torch.randn((count, size), generator=generator, dtype=torch.float64)
    if norm == "l1":  # corners of the ball lie on the axes
        step = step**5
    order = {"l1": 1.0, "l2": 2.0, "linf": math.inf}[norm]
    length = torch.linalg.vector_norm(step, order, 1, keepdim=True)
    return torch.from_numpy(where.center) + step / length * where.radius * (1 - 1e-12)
