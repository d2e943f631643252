"""The input Jacobian of a model at data points, seen in the frequency domain: one pass for every measured quantity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lipscope.claims.errors import Interrupted
from lipscope.claims.progress import Progress, silent
from lipscope.frequency.bands import Bands
from lipscope.frequency.evaluation import Model, check_dtype, check_gradients, check_inputs, check_model

LARGEST_JACOBIAN = 128
"""Up to so many outputs the Jacobian is formed, one backward pass for each; beyond, gains are found by power iteration."""

STEPS = 40
"""Of the power iteration."""

PROBES = 8
"""Random output projections that stand for the rows of a large Jacobian."""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The Jacobian J(x) at n data points, split by frequency.

    Attributes:
        gains: `|J(x) P_b|_2`, (n, M).
        total: `|J(x)|_2`, (n,).
        power: `sum over outputs and channels of |F J|^2` for every frequency, (n, *grid), F the unitary discrete Fourier
            transform: it sums to `|J(x)|_F^2`.
        exact: whether the above hold up to rounding. If not, gains are lower estimates by power iteration and powers are
            unbiased estimates from random projections of the outputs.
    """

    gains: Tensor
    total: Tensor
    power: Tensor
    exact: bool


def sensitivity(
    model: Model,
    x: Tensor,
    bands: Bands,
    *,
    batch: int = 32,
    generator: torch.Generator | None = None,
    progress: Progress = silent,
) -> Sensitivity:
    """Measure the Jacobian at every x.

    Args:
        model: in eval mode; its parameters' `.grad` and the global random numbers stay as they are.
        x: (n, C, *grid), float32 or float64; results have its dtype.
        bands: of that grid.
        batch: how many examples are looked at together.
        generator: for the power iteration of models with many outputs; seeded with 0 if None.
        progress: called with what is being done.

    Raises:
        ModelError: the model is in train mode.
        UsageError: x is not (n, C, *grid) with n >= 1, or x or derivatives there are not finite.
        Interrupted: the user stopped it; its result is that of the first examples, if any.
    """
    check_model(model)
    check_inputs(x, bands.grid)
    check_dtype(model, x)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    parts: list[Sensitivity] = []
    try:
        for number, part in enumerate(torch.split(x, batch)):
            progress("measuring the Jacobian", number * batch / x.shape[0])
            parts.append(_measure(model, part, bands, generator, number * batch))
    except KeyboardInterrupt:
        if not parts:
            raise Interrupted("stopped before any example was measured") from None
        raise Interrupted(f"stopped after {len(parts) * batch} of {len(x)} examples", _joined(parts)) from None
    return _joined(parts)


def _joined(parts: list[Sensitivity]) -> Sensitivity:
    return Sensitivity(
        torch.cat([p.gains for p in parts]), torch.cat([p.total for p in parts]), torch.cat([p.power for p in parts]),
        all(p.exact for p in parts),
    )  # fmt: skip


def rows(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """(x, y) recorded for differentiation: y is (B, K) and depends on x."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        y = model(x)
        return x, y.reshape(x.shape[0], -1)


def pullback(x: Tensor, y: Tensor, u: Tensor, create_graph: bool = False) -> Tensor:
    """J^T u for every example; 0 where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    found = torch.autograd.grad(y, x, u, retain_graph=True, create_graph=create_graph, allow_unused=True)[0]
    return torch.zeros_like(x) if found is None else found


def jacobian(model: Model, x: Tensor) -> Tensor:
    """J, (B, K, C, *grid): one backward pass for each output."""
    x, y = rows(model, x)
    return torch.stack([pullback(x, y, unit.expand_as(y)) for unit in torch.eye(y.shape[1], dtype=y.dtype)], dim=1)


def _measure(model: Model, x: Tensor, bands: Bands, generator: torch.Generator, first: int) -> Sensitivity:
    with torch.no_grad():
        outputs = model(x[:1]).numel()
    if outputs > LARGEST_JACOBIAN:
        return _estimate(model, x, bands, generator, first)
    found = jacobian(model, x)
    check_gradients(found, first)
    transformed = bands.spectrum(found)
    power = transformed.abs().square().sum(dim=(1, 2))
    flat = transformed.flatten(3)
    grams = []
    for mask in bands.masks.flatten(1):
        columns = flat[..., mask].flatten(2)
        # J P_b J^T is real, as the band holds -w with every w.
        grams.append((columns @ columns.mH).real)
    stacked = torch.stack(grams, dim=1)
    return Sensitivity(_root(stacked), _root(stacked.sum(dim=1)), power, exact=True)


def _root(gram: Tensor) -> Tensor:
    """The square root of the largest eigenvalue of symmetric matrices (..., K, K)."""
    largest: Tensor = torch.linalg.eigvalsh(gram)[..., -1]
    return largest.clamp_min(0).sqrt()


def _estimate(model: Model, x: Tensor, bands: Bands, generator: torch.Generator, first: int) -> Sensitivity:
    x, y = rows(model, x)
    power = probed_power(x, y, bands, generator)
    check_gradients(power, first)
    everything = torch.ones(bands.count, dtype=torch.bool)
    found = [_iterate(x, y, bands, which, generator) for which in _each(bands)]
    return Sensitivity(torch.stack(found, dim=1), _iterate(x, y, bands, everything, generator), power, exact=False)


def probed_power(x: Tensor, y: Tensor, bands: Bands, generator: torch.Generator) -> Tensor:
    """An unbiased estimate of the power at every frequency, (B, *grid): `E |F J^T r|^2` over random signs r."""
    power = torch.zeros(x.shape[0], *bands.grid, dtype=x.dtype)
    for _ in range(PROBES):
        signs = torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1
        power += bands.spectrum(pullback(x, y, signs)).abs().square().sum(dim=1) / PROBES
    return power


def _each(bands: Bands) -> Iterator[Tensor]:
    yield from torch.eye(bands.count, dtype=torch.bool)


def _iterate(x: Tensor, y: Tensor, bands: Bands, which: Tensor, generator: torch.Generator) -> Tensor:
    """A lower estimate of `|J P|_2` for every example: power iteration on `P J^T J P`."""
    v = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    best = torch.zeros(x.shape[0], dtype=x.dtype)
    if not y.requires_grad:
        return best
    dummy = torch.zeros_like(y, requires_grad=True)
    with torch.enable_grad():
        back = pullback(x, y, dummy, create_graph=True)  # linear in dummy: its derivative is J
    if not back.requires_grad:
        return best
    for _ in range(STEPS):
        v = bands.project(v, which).detach()
        length = v.flatten(1).norm(dim=1)
        v = v / torch.where(length > 0, length, 1.0).reshape(-1, *(1,) * (x.ndim - 1))
        image = torch.autograd.grad(back, dummy, v, retain_graph=True)[0]
        best = torch.maximum(best, image.norm(dim=1))
        v = pullback(x, y, image)
    return best
