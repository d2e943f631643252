"""Boxes of the nodes that look at whole slices: maxima, sums of exponentials, normalisations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lipcheck.errors import Rejected
from lipcheck.functions import enclose
from lipcheck.nodes import Node
from lipcheck.rounding import Floats, U, downs, gamma, sum_down, sum_up, ups
from lipcheck.shapes import Shape

Range = tuple[Floats, Floats]


def separable_max(node: Node, x: Floats) -> Floats:
    """The maxima of `MaxPool`: over a product of ranges, one axis after the other. Exact."""
    windows = node["windows"]
    first = x.ndim - len(windows)
    for a, rows in enumerate(windows):
        moved = np.moveaxis(x, first + a, 0)
        x = np.moveaxis(np.stack([moved[start:stop:step].max(axis=0) for start, stop, step in rows]), 0, first + a)
    return x


def slices(x: Any, axes: Shape) -> Any:
    """X with `axes` moved to the end and made one: shape (rest..., n)."""
    rest = [a for a in range(x.ndim) if a not in axes]
    moved = x.transpose(*rest, *axes)
    return moved.reshape(*moved.shape[: len(rest)], -1)


def unslices(y: Any, shape: Shape, axes: Shape) -> Any:
    """The inverse of `slices`."""
    rest = [a for a in range(len(shape)) if a not in axes]
    order = (*rest, *axes)
    moved = y.reshape([shape[a] for a in order])
    return moved.transpose([order.index(a) for a in range(len(shape))])


def _others(x: Floats) -> Floats:
    """For each entry of the last axis the sum of the others, nonnegative terms, within a relative `gamma_n`."""
    zero = np.zeros((*x.shape[:-1], 1))
    before = np.concatenate([zero, np.cumsum(x, axis=-1)[..., :-1]], axis=-1)
    after = np.concatenate([np.cumsum(x[..., ::-1], axis=-1)[..., ::-1][..., 1:], zero], axis=-1)
    return np.asarray(before + after)


def _others_up(x: Floats) -> Floats:
    return ups(_others(x) * (1 + 4 * (x.shape[-1] + 2) * U))


def _others_down(x: Floats) -> Floats:
    return np.maximum(downs(_others(x) * (1 - 4 * (x.shape[-1] + 2) * U)), 0.0)


def _exp(x: Floats) -> Range:
    return enclose(lambda t: t.exp(), x)


def _log(x: Floats) -> Range:
    """Log of nonnegative entries, -inf at 0."""
    low, high = enclose(lambda t: t.log(), np.where(x > 0, x, 1.0))
    return np.where(x > 0, low, -np.inf), np.where(x > 0, high, -np.inf)


def _reduce_max(node: Node, lo: Floats, hi: Floats) -> Range:
    return lo.max(axis=node["axes"]).reshape(node.shape), hi.max(axis=node["axes"]).reshape(node.shape)


def _log_sum_exp(node: Node, lo: Floats, hi: Floats) -> Range:
    """Monotone in every entry: `m + log sum exp(x - m)` at both ends."""
    found = []
    for x, lower in ((lo, True), (hi, False)):
        parts = slices(x, node["axes"])
        top = parts.max(axis=-1, keepdims=True)
        if lower:
            total = _log(sum_down(_exp(downs(parts - top))[0], -1))[0]
            found.append(downs(top[..., 0] + total).reshape(node.shape))
        else:
            total = _log(sum_up(_exp(ups(parts - top))[1], -1))[1]
            found.append(ups(top[..., 0] + total).reshape(node.shape))
    return found[0], found[1]


def _exponentials(lo: Floats, hi: Floats, axis: int) -> tuple[Floats, Range, Range]:
    """A shift m per slice and enclosures of exp(lo - m) and exp(hi - m)."""
    a, b = slices(lo, (axis,)), slices(hi, (axis,))
    top = b.max(axis=-1, keepdims=True)
    low = _exp(downs(a - top))[0], _exp(ups(a - top))[1]
    return top, low, (_exp(downs(b - top))[0], _exp(ups(b - top))[1])


def _softmax(node: Node, lo: Floats, hi: Floats) -> Range:
    """`1/(1 + sum of the others/own)`: increasing in the own entry, decreasing in the others."""
    axis = node["axis"]
    _, low, high = _exponentials(lo, hi, axis)
    least = downs(low[0] / ups(low[0] + _others_up(high[1])))
    own = high[1]
    most = ups(own / downs(own + _others_down(low[0])))
    least = np.where(low[0] > 0, np.maximum(least, 0.0), 0.0)
    most = np.where(np.isfinite(most), np.minimum(most, 1.0), 1.0)
    return unslices(least, lo.shape, (axis,)), unslices(most, lo.shape, (axis,))


def _log_softmax(node: Node, lo: Floats, hi: Floats) -> Range:
    """`x_i - m - log(exp(x_i - m) + others)`, never positive."""
    axis = node["axis"]
    top, low, high = _exponentials(lo, hi, axis)
    a, b = slices(lo, (axis,)), slices(hi, (axis,))
    least = downs(downs(a - top) - _log(ups(low[1] + _others_up(high[1])))[1])
    most = ups(ups(b - top) - _log(np.maximum(downs(high[0] + _others_down(low[0])), 0.0))[0])
    return unslices(least, lo.shape, (axis,)), unslices(np.minimum(most, 0.0), lo.shape, (axis,))


def squares(lo: Floats, hi: Floats) -> Range:
    """x^2 on an interval."""
    small, large = np.maximum(np.maximum(lo, -hi), 0.0), np.maximum(np.abs(lo), np.abs(hi))
    return np.maximum(downs(small * small), 0.0), np.where(large > 0, ups(large * large), 0.0)


def centred(x: Range) -> Range:
    """Each entry of the last axis minus its slice's mean: `(1 - 1/n) x_i - sum of the others/n`."""
    lo, hi = x
    n = lo.shape[-1]
    most = np.maximum(np.abs(lo), np.abs(hi))
    # The sum of the others has rounding gamma_n of the sum of absolute values.
    slack = _others_up(most) * (4 * gamma(n + 2))
    others = downs(_others(lo) - slack), ups(_others(hi) + slack)
    low = downs(downs(downs(lo * (n - 1)) - others[1]) / n)
    high = ups(ups(ups(hi * (n - 1)) - others[0]) / n)
    if n == 1:
        return np.zeros_like(lo), np.zeros_like(hi)
    return low, high


def _rms(x: Range, eps: float) -> Range:
    """`x_i/sqrt(x_i^2/n + r)`, r = (sum of the other squares)/n + eps: increasing in x_i, and its absolute value
    decreasing in r.
    """
    lo, hi = x
    n = lo.shape[-1]
    least, most = squares(lo, hi)
    rest = downs(np.maximum(downs(_others_down(least) / n), 0.0) + eps), ups(ups(_others_up(most) / n) + eps)
    rest = (np.maximum(rest[0], 0.0), rest[1])

    def value(t: Floats, lower: bool) -> Floats:
        r = np.where((t >= 0) == lower, rest[1], rest[0])  # a large rest brings the quotient to 0
        own = squares(t, t)
        root = (downs(np.sqrt(np.maximum(downs(downs(own[0] / n) + r), 0.0))), ups(np.sqrt(ups(ups(own[1] / n) + r))))
        root = (np.maximum(root[0], 0.0), root[1])
        if lower:
            return downs(t / np.where(t >= 0, root[1], root[0]))
        return ups(t / np.where(t >= 0, root[0], root[1]))

    low, high = value(lo, True), value(hi, False)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise Rejected("the mean square may be 0")
    bound = math.nextafter(math.sqrt(n), math.inf)
    return np.maximum(low, -bound), np.minimum(high, bound)


def _rms_norm(node: Node, lo: Floats, hi: Floats) -> Range:
    axes = node["axes"]
    low, high = _rms((slices(lo, axes), slices(hi, axes)), node["eps"])
    return unslices(low, lo.shape, axes), unslices(high, hi.shape, axes)


def _layer_norm(node: Node, lo: Floats, hi: Floats) -> Range:
    axes = node["axes"]
    low, high = _rms(centred((slices(lo, axes), slices(hi, axes))), node["eps"])
    return unslices(low, lo.shape, axes), unslices(high, hi.shape, axes)


def _reduce_l2(node: Node, lo: Floats, hi: Floats) -> Range:
    """Scaled by a power of two for each box, so that squares neither overflow nor vanish unnoticed."""
    exponent = int(np.frexp(max(float(np.abs(lo).max()), float(np.abs(hi).max())))[1])
    least, most = squares(*(np.ldexp(slices(x, node["axes"]), -exponent) for x in (lo, hi)))
    low = np.maximum(downs(np.sqrt(sum_down(least, -1))), 0.0)
    high = ups(np.sqrt(sum_up(most, -1)))
    return downs(np.ldexp(low, exponent)).clip(0).reshape(node.shape), ups(np.ldexp(high, exponent)).reshape(node.shape)


def mean_square_down(node: Node, lo: Floats, hi: Floats) -> float:
    """A lower bound, over the box and all slices, of the mean square (for `LayerNorm`: of the variance)."""
    parts = slices(lo, node["axes"]), slices(hi, node["axes"])
    if node.kind == "LayerNorm":
        parts = centred(parts)
    n = parts[0].shape[-1]
    return max(0.0, float(downs(sum_down(squares(*parts)[0], -1) / n).min()))


REDUCTIONS: dict[str, Callable[[Node, Floats, Floats], Range]] = {
    "ReduceMax": _reduce_max, "LogSumExp": _log_sum_exp, "Softmax": _softmax, "LogSoftmax": _log_softmax,
    "LayerNorm": _layer_norm, "RMSNorm": _rms_norm, "ReduceL2": _reduce_l2,
}  # fmt: skip
