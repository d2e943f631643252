"""Fourier heat maps: the error of a model, or the change of a layer, under a wave of each frequency (arXiv 1906.08988).

For every pair {f, -f} of frequencies of the grid a real wave U of Euclidean length 1 is added to each channel with a
random sign, times a norm v. The map shows the share of errors, or the mean length of the change of a layer, at both f and
-f, with frequency 0 in the middle. A pair has two waves, cosine and sine; where f = -f only one. It is a measurement with
these images, signs and norm: no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress, silent
from lipscope.frequency.bands import Bands
from lipscope.frequency.evaluation import Model, check_dtype, check_inputs, check_labels, check_model
from lipscope.frequency.observed import LayerChange, WrongAnswers
from lipscope.frequency.statistics import standard_error
from lipscope.frequency.waves import distinct_frequencies, mirror, phases_of, waves

PHASES = ("both", "cosine", "sine")
"""Which waves are used."""

BATCH = 64
"""Images of a forward pass: on a processor larger ones fall out of its cache and take up to three times as long per image."""

GROUP = 2048
"""Forward passes whose waves and signs are prepared together; an interrupted map loses at most so many."""

PER = ("channel", "image")
"""What has a wave of the given length."""

Observed = WrongAnswers | LayerChange


@dataclass(frozen=True, eq=False)
class HeatMap:
    """A measured map; grids are in the order of `fftshift`, frequency 0 at index n // 2 of each axis.

    Attributes:
        values: (*grid), float64; nan where a frequency was not sampled.
        se: standard errors over images, (*grid). Phases of one image count once.
        lower: ends of binomial 95 per cent intervals (Clopper and Pearson) of an error rate; None for a layer's change. With
            both phases an image counts by the mean of the two, which spreads no more than a coin, so that they are wide.
        upper: the upper ends.
        quantity: `error`, or `change of LAYER` (`change of output` for the network's).
        norm: v.
        per: whether each channel's wave has length v (as published) or that of all channels together.
        total_norm: length of the perturbation of an image, all channels together: `v sqrt(C)` or v.
        phases: both (averaged), cosine or sine. Where f = -f it is the one that exists.
        clip: the valid range that perturbed images were clipped to, or None.
        clipped_norm: mean length of the perturbations that were applied; `total_norm` unless clipped.
        images: how many were used.
        sampled: how many of the distinct frequencies were used.
        distinct: how many there are.
        clean: the value without perturbation: the error rate, or 0.
    """

    values: Tensor
    se: Tensor
    lower: Tensor | None
    upper: Tensor | None
    quantity: str
    norm: float
    per: str
    total_norm: float
    phases: str
    clip: tuple[float, float] | None
    clipped_norm: float
    images: int
    sampled: int
    distinct: int
    clean: float

    def profile(self, bands: Bands) -> tuple[Tensor, Tensor]:
        """Means over the sampled frequencies of each band, and standard errors, (M,) each; nan where none was sampled.

        The error adds that of drawing frequencies (with the correction for a finite population) to the mean error over images: all
        frequencies see the same images, so that averaging over frequencies does not lower the latter.
        """
        if bands.grid != tuple(self.values.shape):
            raise UsageError(f"expected bands of the map's grid {list(self.values.shape)}, got {list(bands.grid)}")
        axes = tuple(range(self.values.ndim))
        means, errors = [], []
        for mask in torch.fft.fftshift(bands.masks, dim=tuple(a + 1 for a in axes)):
            chosen = mask & ~self.values.isnan()
            count, whole = int(chosen.sum()), int(mask.sum())
            found = self.values[chosen]
            means.append(float(found.mean()) if count else math.nan)
            # A pair f, -f is one draw.
            spread = float(found.std()) if count > 2 else 0.0 if count == whole else math.nan
            drawn = spread * math.sqrt(2 / max(count, 1) * (1 - count / whole)) if count < whole else 0.0
            errors.append(math.hypot(drawn, float(self.se[chosen].mean())) if count else math.nan)
        return torch.tensor(means, dtype=torch.float64), torch.tensor(errors, dtype=torch.float64)

    def to_json(self) -> dict[str, object]:
        """The map as JSON has it: nested lists with null where nothing was sampled."""
        grids = {"values": self.values, "se": self.se, "lower": self.lower, "upper": self.upper}
        return {name: None if grid is None else _nested(grid) for name, grid in grids.items()} | {
            "quantity": self.quantity, "norm": self.norm, "per": self.per, "total_norm": self.total_norm,
            "phase": self.phases, "clip": None if self.clip is None else list(self.clip),
            "clipped_norm": self.clipped_norm, "images": self.images, "sampled": self.sampled,
            "distinct": self.distinct, "clean": self.clean,
        }  # fmt: skip


def fourier_heatmap(
    model: Model,
    x: Tensor,
    y: Tensor | None,
    norm: float,
    *,
    layer: str | None = None,
    phases: str = "both",
    per: str = "channel",
    clip: tuple[float, float] | None = None,
    frequencies: int | None = None,
    images: int | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = BATCH,
    progress: Progress = silent,
) -> HeatMap:
    """The heat map of a model.

    It costs a forward pass for each distinct frequency (about half of the grid), phase and image. Equal generators give
    equal maps for every batch size, up to rounding in the model.

    Args:
        model: a module in eval mode or a function of (B, C, *grid); it normalises its inputs itself.
        x: images (N, C, *grid), of one, two or more axes, odd or even.
        y: labels (N,) for the error rate; None for the change of a layer.
        norm: v, the length of the wave in units of the inputs.
        layer: name of a submodule, or the empty text for the network's output: the map shows the mean length of the
            change of its output. None shows the share of errors.
        phases: cosine, sine, or both averaged at twice the cost.
        per: whether v is the length for each channel, as published, or for all together.
        clip: a valid range to clip perturbed images to; that shortens waves, by what `clipped_norm` says.
        frequencies: measure only so many, drawn at random; all if None.
        images: measure with only so many, drawn at random; all if None.
        generator: for signs and draws; a new one with seed 0 if None, never the global one.
        batch_size: images in one forward pass; accelerators want more than the default.
        progress: called with the share that is done.

    Raises:
        ModelError: the model is in train mode.
        UsageError: there is no such layer, neither labels nor a layer were given, or inputs or arguments do not fit.
        Interrupted: the user stopped it; its result is the map of the frequencies that were reached, if any.
    """
    check_model(model)
    check_inputs(x)
    check_dtype(model, x)
    _check(x, y, layer, norm, phases, per, clip, frequencies, images, batch_size)
    own = torch.Generator().manual_seed(0) if generator is None else generator
    grid = tuple(x.shape[2:])
    distinct = distinct_frequencies(grid)
    chosen = [distinct[i] for i in _draw(len(distinct), frequencies, own)]
    kept = torch.tensor(_draw(len(x), images, own), device=x.device)
    observed: Observed
    if layer is None:
        assert y is not None
        observed = WrongAnswers(model, y[kept])
    else:
        observed = LayerChange(model, layer)
    total = float(norm) * (math.sqrt(x.shape[1]) if per == "channel" else 1.0)
    run = _Run(x[kept], observed, total / math.sqrt(x.shape[1]), phases, clip, own, batch_size)
    with torch.no_grad(), observed:
        clean = observed.reference(run.x.clone(), batch_size)  # a model may change its input in place
        found, stopped = _reached(run, chosen, progress)
    planned, rows = len(chosen), torch.cat(found)
    chosen = chosen[: len(rows)]
    interval = clopper_pearson(rows[:, 0], len(kept)) if layer is None else None
    result = HeatMap(
        values=_grid(grid, chosen, rows[:, 0]), se=_grid(grid, chosen, rows[:, 1]),
        lower=None if interval is None else _grid(grid, chosen, interval[0]),
        upper=None if interval is None else _grid(grid, chosen, interval[1]),
        quantity=observed.quantity, norm=float(norm), per=per, total_norm=total, phases=phases, clip=clip,
        clipped_norm=total if clip is None else run.length / run.waves, images=len(kept), sampled=len(rows),
        distinct=len(distinct), clean=clean,
    )  # fmt: skip
    if stopped:
        raise Interrupted(f"stopped after {len(rows)} of {planned} frequencies", result)
    return result


def clopper_pearson(rates: Tensor, count: int, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Ends of the binomial intervals of Clopper and Pearson, which hold the true rate at least with the probability `level`.

    Args:
        rates: shares of `count` trials, any shape; fractional numbers of successes are interpolated.
        count: of trials, at least 1.
        level: in (0, 1).
    """
    from scipy.special import betaincinv  # scipy.stats has it under another name and takes half a second to import

    tail, successes = (1 - level) / 2, rates.to(torch.float64).numpy() * count
    # Where there is no success (or no failure) a parameter is 0, for which scipy has nan; the end is then 0 (or 1).
    lower = torch.from_numpy(betaincinv(successes, count - successes + 1, tail)).nan_to_num(nan=0.0)
    upper = torch.from_numpy(betaincinv(successes + 1, count - successes, 1 - tail)).nan_to_num(nan=1.0)
    return lower, upper


@dataclass
class _Run:
    """The forward passes of a map; `length` and `waves` add up the lengths of what was applied after clipping.

    Perturbed images are written into one buffer again and again: memory that is new costs more to touch than to fill.
    """

    x: Tensor
    observed: Observed
    scale: float
    phases: str
    clip: tuple[float, float] | None
    generator: torch.Generator
    batch_size: int
    length: float = 0.0
    waves: int = 0
    buffer: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.buffer = self.x.new_empty(self.batch_size, *self.x.shape[1:])

    def groups(self, chosen: Sequence[tuple[int, ...]]) -> Iterator[Sequence[tuple[int, ...]]]:
        """As many frequencies at a time as are worth preparing together; at least one.

        Signs are drawn group by group: that must not depend on the size of batches.
        """
        size = max(1, GROUP // (len(self.x) * (2 if self.phases == "both" else 1)))
        return (chosen[i : i + size] for i in range(0, len(chosen), size))

    def rows(self, group: Sequence[tuple[int, ...]]) -> Tensor:
        """Mean over images and its standard error, (frequencies, 2)."""
        grid = tuple(self.x.shape[2:])
        phases = [phases_of(f, grid, self.phases) for f in group]
        shapes = waves(grid, [(f, p) for f, own in zip(group, phases, strict=True) for p in own])
        table = self.observed.values(self._table(self._signs(len(shapes)), (self.scale * shapes).to(self.x)))
        per_frequency = [rows.mean(dim=0) for rows in torch.split(table, [len(p) for p in phases])]
        per_image = torch.stack(per_frequency, dim=1)
        return torch.stack([per_image.mean(dim=0), standard_error(per_image)], dim=1)

    def _table(self, signs: Tensor, shapes: Tensor) -> Tensor:
        """What is observed of each wave (waves, *grid) on each image, (waves, images, ...), with signs (waves, images, C)."""
        signs, shapes = signs.reshape(*signs.shape, *(1,) * (shapes.ndim - 1)), shapes[:, None, None]
        rows = min(len(self.x), self.batch_size)  # all waves on some images, which meanwhile stay in the cache
        at_once = self.batch_size // rows
        return torch.cat([
            torch.cat([
                self._observe(slice(start, start + rows), signs[wave : wave + at_once], shapes[wave : wave + at_once])
                for wave in range(0, len(shapes), at_once)
            ])
            for start in range(0, len(self.x), rows)
        ], dim=1)  # fmt: skip

    def _observe(self, part: slice, signs: Tensor, shapes: Tensor) -> Tensor:
        clean = self.x[part]
        flat = self.buffer[: len(shapes) * len(clean)]
        images = flat.view(len(shapes), *clean.shape)
        torch.addcmul(clean, signs[:, part], shapes, out=images)
        if self.clip is not None:
            images.clamp_(*self.clip)
            self.length += float((images - clean).flatten(2).norm(dim=2).sum(dtype=torch.float64))
            self.waves += len(shapes) * len(clean)
        found = self.observed(flat, part)
        return found.reshape(len(shapes), len(clean), *found.shape[1:])

    def _signs(self, count: int) -> Tensor:
        shape = (count, *self.x.shape[:2])
        drawn = torch.randint(2, shape, generator=self.generator, device=self.generator.device)
        return (2 * drawn - 1).to(self.x)


def _reached(run: _Run, chosen: Sequence[tuple[int, ...]], progress: Progress) -> tuple[list[Tensor], bool]:
    """The rows of all frequencies, or of those that were reached before the user stopped it, and whether that happened."""
    found: list[Tensor] = []
    done = 0
    try:
        for group in run.groups(chosen):
            progress("Fourier heat map", done / len(chosen))
            found.append(run.rows(group))
            done += len(group)
    except KeyboardInterrupt:
        if not found:
            raise Interrupted("stopped before any frequency was done") from None
        return found, True
    return found, False


def _draw(available: int, wanted: int | None, generator: torch.Generator) -> list[int]:
    """All numbers below `available`, or `wanted` of them drawn without replacement, in order."""
    if wanted is None or wanted == available:
        return list(range(available))
    return sorted(torch.randperm(available, generator=generator, device=generator.device)[:wanted].tolist())


def _grid(grid: tuple[int, ...], frequencies: Sequence[tuple[int, ...]], values: Tensor) -> Tensor:
    """Values at both frequencies of each pair, frequency 0 in the middle, nan elsewhere."""
    result = torch.full(grid, math.nan, dtype=torch.float64)
    for own in (frequencies, [mirror(f, grid) for f in frequencies]):
        result[tuple(torch.tensor(own).T)] = values
    centred: Tensor = torch.fft.fftshift(result)
    return centred


def _nested(grid: Tensor) -> object:
    if grid.ndim:
        return [_nested(row) for row in grid]
    return float(grid) if math.isfinite(float(grid)) else None


def _check(
    x: Tensor, y: Tensor | None, layer: str | None, norm: float, phases: str, per: str,
    clip: tuple[float, float] | None, frequencies: int | None, images: int | None, batch_size: int,
) -> None:  # fmt: skip
    if layer is None and y is None:
        raise UsageError("expected labels for a map of errors, or a layer for a map of changes ('' is the output)")
    if y is not None and layer is None:
        check_labels(y, len(x))
    if not (math.isfinite(norm) and norm > 0):
        raise UsageError(f"expected a finite norm above 0, got {norm}")
    for what, given, known in (("phases", phases, PHASES), ("per", per, PER)):
        if given not in known:
            raise UsageError(f"expected {what} out of {', '.join(known)}, got {given!r}")
    if clip is not None and not clip[0] < clip[1]:
        raise UsageError(f"expected a range LOW < HIGH to clip to, got {clip}")
    distinct = len(distinct_frequencies(tuple(x.shape[2:])))
    for what, wanted, available in (("frequencies", frequencies, distinct), ("images", images, len(x))):
        if wanted is not None and not 1 <= wanted <= available:
            raise UsageError(f"expected from 1 to {available} {what}, as many as there are, got {wanted}")
    if batch_size < 1:
        raise UsageError(f"expected a batch size of at least 1, got {batch_size}")
