"""Spectral importance: Shapley values of frequency bands, how much of a model's predictive power each of them carries.

The players are the bands; a coalition keeps its bands of an image and takes the others from a filler. With v(S) the mean
value (log-probability of the label) over images, band i is worth

    psi_i = sum over S without i of  (v(S + i) - v(S)) / (M C(M-1, |S|)),      sum_i psi_i = v(all) - v(none).

The idea is that of I-ASIDE (arXiv 2408.01139). Here all coalitions see the same images with the same fillers, so that the
values of each image are Shapley values themselves and their spread gives standard errors; images are neither rescaled
nor made positive, masks are symmetric so that they stay real, and the score has a sign. What the score does not say: on
small data it does not rank models by robustness (see the study `spectral-importance`); look at band gains for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress, silent
from lipscope.frequency.bands import Bands
from lipscope.frequency.evaluation import (
    Model,
    check_dtype,
    check_inputs,
    check_labels,
    check_model,
    check_scores,
)
from lipscope.frequency.statistics import number, numbers, standard_error

FILLERS = ("other", "mean", "zero")
"""What absent bands are replaced by: those of another image, of the mean image, or nothing."""

BASELINES = ("zero", "minimum")
"""From what the shares of a score are counted."""

Value = Callable[[Tensor, Tensor], Tensor]
"""From outputs (B, ...) and targets (B, ...) to one number for each image, (B,)."""

MAX_BANDS = 12
"""2^12 = 4096 forward passes for each image; beyond that the exact sum is refused."""

BETA = 0.75
"""The score's weight of band k is BETA^k, as published."""


@dataclass(frozen=True, eq=False)
class SpectralImportance:
    """Shapley values of bands, with what is needed to judge them.

    Attributes:
        values: psi (M,), means over images, float64.
        se: standard errors (M,) over images; nan for one image. They hold the fillers' choice to be part of the draw.
        per_image: Shapley values of each image, (K, M).
        full: v of the images as they are.
        empty: v of the fillers.
        gap: `|sum psi - (full - empty)|`. full and empty are evaluated on the images and fillers themselves, so that
            the gap also shows what projecting and adding up bands costs in the model's precision.
        score: `signed_score(values)`.
        score_se: its standard error by the jackknife over images; nan for fewer than 3.
        filler: what absent bands are replaced by.
    """

    values: Tensor
    se: Tensor
    per_image: Tensor
    full: float
    empty: float
    gap: float
    score: float
    score_se: float
    filler: str

    @property
    def images(self) -> int:
        """How many images there are, K."""
        return len(self.per_image)

    def to_json(self) -> dict[str, object]:
        """Everything but the values of single images, as JSON has it."""
        return {
            "values": self.values.tolist(), "se": numbers(self.se), "full": self.full, "empty": self.empty,
            "gap": self.gap, "score": self.score, "score_se": number(self.score_se),
            "filler": self.filler, "images": self.images, "bands": len(self.values),
        }  # fmt: skip


def log_probability(outputs: Tensor, labels: Tensor) -> Tensor:
    """The log-probability of the label under the softmax of the outputs, (B,)."""
    check_scores(outputs, labels)
    return outputs.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]


def negative_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean squared error of each image's outputs, (B,): a value for regressions."""
    if outputs.shape != targets.shape:
        raise UsageError(
            f"expected targets of the outputs' shape {list(outputs.shape[1:])}, got {list(targets.shape[1:])}"
        )
    return -(outputs - targets).flatten(1).square().mean(dim=1)


def spectral_shapley(
    model: Model,
    x: Tensor,
    y: Tensor,
    bands: Bands,
    filler: str = "other",
    generator: torch.Generator | None = None,
    batch_size: int = 512,
    value: Value | None = None,
    progress: Progress = silent,
) -> SpectralImportance:
    """Exact Shapley values of the bands: all 2^M coalitions, the same images and fillers for each.

    It takes 2^M forward passes for each image and, beside the table of their values (K x 2^M float64), memory for a batch.
    Equal generators give equal results; the batch size changes nothing but rounding.

    Args:
        model: a module in eval mode or a function of (B, C, *grid); it normalises its inputs itself.
        x: images (K, C, *grid).
        y: labels (K,), or for another `value` whatever it takes, with K rows.
        bands: the players, at most 12.
        filler: `other` draws for each image another one of x; `mean` is the mean of x; `zero` is 0, also where 0 is no
            neutral input.
        generator: for the draw of other images; a new one with seed 0 if None, never the global one.
        batch_size: images in one forward pass.
        value: of outputs and targets; `log_probability` for whole-number labels, else `negative_squared_error`.
        progress: called with the share that is done.

    Raises:
        ModelError: the model is in train mode.
        UsageError: more than 12 bands, no other image, or inputs, labels, outputs or arguments that do not fit.
        Interrupted: the user stopped it; its result is that of the images that were done, if any.
    """
    check_model(model)
    check_inputs(x, bands.grid)
    check_dtype(model, x)
    _check(x, y, bands, filler, batch_size)
    if value is None:
        value = negative_squared_error if y.is_floating_point() else log_probability
        if value is log_probability:
            check_labels(y, len(x))
    with torch.no_grad():
        fillers = _fillers(x, filler, generator)
        table, stopped = _reached(_tables(model, x, y, fillers, bands, batch_size, value), len(x), progress)
        done = slice(len(table))
        full, empty = (_values(model, images[done], y[done], batch_size, value).mean() for images in (x, fillers))
    per_image = shapley(table)
    mean = per_image.mean(dim=0)
    result = SpectralImportance(
        values=mean, se=standard_error(per_image), per_image=per_image, full=float(full), empty=float(empty),
        gap=abs(float(mean.sum() - (full - empty))), score=signed_score(mean), score_se=_jackknife(per_image),
        filler=filler,
    )  # fmt: skip
    if stopped:
        raise Interrupted(f"stopped after {len(table)} of {len(x)} images", result)
    return result


def shapley(table: Tensor) -> Tensor:
    """Exact Shapley values of cooperative games from the values of all coalitions.

    Args:
        table: (..., 2^M); entry c is the value of the coalition of the players i with bit i of c set.

    Returns:
        (..., M), float64. Entries add up to `table[..., -1] - table[..., 0]`.

    Raises:
        UsageError: the last axis is no power of two, or is 1.
    """
    size = table.shape[-1] if table.ndim else 0
    players = size.bit_length() - 1
    if size < 2 or size != 1 << players:
        raise UsageError(f"expected the values of 2^M coalitions of M >= 1 players, got {size}")
    return table.to(torch.float64) @ _weights(players).to(table.device)


@cache
def _weights(players: int) -> Tensor:
    """The matrix (2^M, M) that takes a game's table to its Shapley values."""
    codes = torch.arange(1 << players)
    member = (codes[:, None] >> torch.arange(players)) & 1
    size = member.sum(dim=1)
    # With i in S, v(S) is a term of +1/(M C(M-1, |S|-1)); without, of -1/(M C(M-1, |S|)).
    share = torch.tensor([1 / (players * math.comb(players - 1, s)) for s in range(players)], dtype=torch.float64)
    gains, losses = share[(size - 1).clamp(min=0)], share[size.clamp(max=players - 1)]
    return torch.where(member.bool(), gains[:, None], -losses[:, None])


def signed_score(values: Tensor, beta: float = BETA, baseline: str = "zero") -> float:
    """Whether importance sits in low bands (positive) or in high ones (negative); 0 for an even spread.

    `(<b, p> - D)/(1 - D)` with `b_k = beta^k` (band 0 the lowest) scaled to Euclidean length 1, p the bands' shares and
    `D = sum(b)/M`, the value of an even spread. For 8 bands and beta = 0.75 it lies between -0.3002 and 0.5217.

    Args:
        values: Shapley values (M,), M >= 1.
        beta: in (0, 1).
        baseline: from what shares are counted. `zero`: bands with negative values have share 0. `minimum`: the smallest
            value is subtracted first, as published; of noisy values this takes too much, which pulls the score down where
            there are few images.

    Returns:
        The score; 0 where no band has a share, and for a single band. It is not the published one, whose absolute value hides the sign.

    Raises:
        UsageError: there is one band only, beta is not in (0, 1), or there is no such baseline.
    """
    count = len(values)
    if values.ndim != 1 or count < 1 or not 0 < beta < 1:
        raise UsageError(
            f"expected the values of one band or more and beta in (0, 1), got shape {list(values.shape)} and beta {beta}"
        )
    if baseline not in BASELINES:
        raise UsageError(f"expected a baseline out of {', '.join(BASELINES)}, got {baseline!r}")
    psi = values.detach().to(torch.float64)
    shares = psi - psi.min() if baseline == "minimum" else psi.clamp(min=0)
    total = float(shares.sum())
    if count == 1 or total == 0:
        return 0.0
    weights = torch.tensor([beta**k for k in range(count)], dtype=torch.float64)
    weights /= weights.norm()
    even = float(weights.sum()) / count
    return (float(weights @ shares) / total - even) / (1 - even)


def _jackknife(per_image: Tensor) -> float:
    """Standard error of the score of the mean, from the scores with one image left out."""
    count = len(per_image)
    if count < 3:
        return math.nan
    left_out = (per_image.sum(dim=0) - per_image) / (count - 1)
    scores = torch.tensor([signed_score(row) for row in left_out], dtype=torch.float64)
    return math.sqrt((count - 1) / count * float((scores - scores.mean()).square().sum()))


def _fillers(x: Tensor, filler: str, generator: torch.Generator | None) -> Tensor:
    if filler == "zero":
        return torch.zeros_like(x)
    if filler == "mean":
        return x.mean(dim=0, keepdim=True).expand_as(x)
    own = torch.Generator().manual_seed(0) if generator is None else generator
    draws = torch.randint(len(x) - 1, (len(x),), generator=own, device=own.device).to(x.device)
    return x[draws + (draws >= torch.arange(len(x), device=x.device))]


def _tables(
    model: Model, x: Tensor, y: Tensor, fillers: Tensor, bands: Bands, batch_size: int, value: Value
) -> Iterator[Tensor]:
    """Values of all coalitions, (images, 2^M), for some images at a time.

    Projectors sum to the identity, so that a coalition's image is `filler + sum over its bands of P_b (x - filler)`:
    one transform for each image and band, and a matrix product for each batch.
    """
    codes = torch.arange(1 << bands.count)
    member = ((codes[:, None] >> torch.arange(bands.count)) & 1).to(x)
    coalitions = torch.split(member, batch_size)
    rows = max(1, batch_size // len(codes))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        differences = x[part] - fillers[part]
        pieces = torch.stack([bands.project(differences, b) for b in range(bands.count)], dim=1).flatten(2)
        found = []
        for chosen in coalitions:
            images = fillers[part].flatten(1)[:, None] + chosen @ pieces
            repeated = y[part].repeat_interleave(len(chosen), dim=0)
            values = _values(model, images.reshape(-1, *x.shape[1:]), repeated, batch_size, value)
            found.append(values.reshape(len(differences), -1))
        yield torch.cat(found, dim=1)


def _reached(tables: Iterator[Tensor], count: int, progress: Progress) -> tuple[Tensor, bool]:
    """The table of all images, or of those that were done before the user stopped it, and whether that happened."""
    found: list[Tensor] = []
    done = 0
    try:
        for table in tables:
            found.append(table)
            done += len(table)
            progress("spectral importance", done / count)
    except KeyboardInterrupt:
        if not found:
            raise Interrupted("stopped before any image was done") from None
        return torch.cat(found), True
    return torch.cat(found), False


def _values(model: Model, images: Tensor, y: Tensor, batch_size: int, value: Value) -> Tensor:
    """The value of each image, (B,) in float64."""
    pairs = zip(torch.split(images, batch_size), torch.split(y, batch_size), strict=True)
    found = torch.cat([_one_batch(model, part, targets, value) for part, targets in pairs])
    if not bool(found.isfinite().all()):
        raise UsageError(
            f"expected finite values, got {int((~found.isfinite()).sum())} of {len(found)} that are not; "
            "look at the model's outputs, or try another filler"
        )
    return found


def _one_batch(model: Model, images: Tensor, targets: Tensor, value: Value) -> Tensor:
    found = value(model(images), targets)
    if found.shape != (len(images),):
        raise UsageError(f"expected one value for each of {len(images)} images, got shape {list(found.shape)}")
    return found.detach().to("cpu", torch.float64)


def _check(x: Tensor, y: Tensor, bands: Bands, filler: str, batch_size: int) -> None:
    if bands.count > MAX_BANDS:
        raise UsageError(
            f"expected at most {MAX_BANDS} bands, got {bands.count}: exact Shapley values take 2^{bands.count} forward "
            "passes for each image; use fewer, wider bands, or octaves"
        )
    if filler not in FILLERS:
        raise UsageError(f"expected a filler out of {', '.join(FILLERS)}, got {filler!r}")
    if filler == "other" and len(x) < 2:
        raise UsageError(
            "expected at least 2 images to fill bands from another one, got 1; use the filler mean or zero"
        )
    if len(y) != len(x):
        raise UsageError(f"expected labels for {len(x)} images, got {len(y)}")
    if batch_size < 1:
        raise UsageError(f"expected a batch size of at least 1, got {batch_size}")
