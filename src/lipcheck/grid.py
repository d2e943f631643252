"""Evidence `grid` and `circle`: a convolution's symbol at finitely many frequencies, with M. Riesz's inequality or exactly."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from flint import arb, ctx
from numpy.typing import NDArray

from lipcheck.bundle import integer
from lipcheck.errors import Rejected
from lipcheck.functions import arb_down
from lipcheck.linear import batch_norm_scale
from lipcheck.nodes import Node
from lipcheck.norms import cholesky
from lipcheck.rounding import Floats, U, gamma
from lipcheck.segments import Operator

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-800, 2.0**100
"""Nonzero scales of channels, and all their partial products, are in this range: so their roundings are relative."""


def _per_channel(values: Floats, node: Node) -> Floats:
    """One number per channel, if the broadcast values are uniform on each.

    Raises:
        Rejected: they are not.
    """
    full = np.moveaxis(np.broadcast_to(values, node.shape), 1, 0).reshape(node.shape[1], -1)
    if not (full == full[:, :1]).all():
        raise Rejected(f"grid needs one number per channel at node {node.name!r}")
    return np.asarray(full[:, 0], dtype=np.float64)


def _scaled(scale: Floats, by: Floats, divide: bool = False) -> Floats:
    """The product (or quotient) of channel scales, 0 only where a factor is: no underflow hides in it.

    Raises:
        Rejected: a factor or the result is neither 0 nor in [SMALLEST_SCALE, LARGEST_SCALE].
    """
    result = scale / by if divide else scale * by
    factor = 1 / by if divide else by
    for values in (factor, result):
        size = np.abs(values)
        if not ((values == 0) | ((size >= SMALLEST_SCALE) & (size <= LARGEST_SCALE))).all():
            raise Rejected("grid: a channel's scale, or a partial product of it, is too large or too small")
    if ((result == 0) & (scale != 0) & (factor != 0)).any():
        raise Rejected("grid: a channel's scale underflows")
    return np.asarray(result, dtype=np.float64)


def _chain(operator: Operator, circle: bool) -> tuple[Node, Floats, int]:
    """The convolution, the product of the scales after it, and how many roundings that product has.

    For a circle the first node but one is the `Pad` that closes it.

    Raises:
        Rejected: the segment is anything else.
    """
    conv: Node | None = None
    closing: Node | None = None
    scale: Floats = np.ones(1)
    roundings, previous = 0, operator.source
    if operator.columns is not None:
        raise Rejected("grid does not allow dead entries")
    for index in operator.between:
        node = operator.network.nodes[index]
        if node.inputs != (previous,):
            raise Rejected("grid needs a chain of nodes")
        previous = index
        if node.kind == "AddConstant" and not (circle and conv is None):
            continue
        if circle and conv is None and closing is None and node.kind == "Pad":
            closing = node
            continue
        if node.kind == "Conv" and conv is None:
            conv, scale = node, np.ones(node.shape[1])
            continue
        if conv is None:
            raise Rejected(f"grid needs the convolution first, got {node.kind} {node.name!r}")
        with np.errstate(all="ignore"):
            if node.kind == "BatchNorm" and node["axis"] == 1:
                scale, roundings = _scaled(scale, batch_norm_scale(node)), roundings + 5
            elif node.kind == "MulConstant":
                scale, roundings = _scaled(scale, _per_channel(node["value"], node)), roundings + 1
            elif node.kind == "DivConstant":
                scale, roundings = _scaled(scale, _per_channel(node["value"], node), divide=True), roundings + 1
            elif node.kind == "Elementwise":
                slopes = _per_channel(operator.linear_slopes[index], node)
                scale, roundings = _scaled(scale, slopes), roundings + 1
            else:
                raise Rejected(f"grid does not allow {node.kind} {node.name!r}")
    if conv is None:
        raise Rejected("grid needs a convolution")
    if circle:
        _closed(closing, conv, operator.shapes[0])
    if operator.rows is not None:
        with np.errstate(all="ignore"):
            rows = _per_channel(operator.rows, operator.network.nodes[operator.end])
            scale, roundings = _scaled(scale, rows), roundings + 1
    return conv, scale, roundings


def _closed(pad: Node | None, conv: Node, shape: tuple[int, ...]) -> None:
    """Whether the convolution of the padded image (N, C, *spatial) goes round: n/s positions on an axis of n entries.

    Position p then reads `x[(s p + d t - low) mod n]` for all p modulo n/s, so shifting the image by s shifts the value by
    one: L is block circulant, and the discrete Fourier transform over n/s positions turns it into the polyphase symbols.

    Raises:
        Rejected: it does not.
    """
    if pad is None or pad["mode"] != "wrap" or any(pair != (0, 0) for pair in (*pad["pads"][:2], *conv["padding"])):
        raise Rejected("circle needs a wrapping Pad of the spatial axes before a convolution without padding")
    rows = zip(shape[2:], conv.shape[2:], conv["stride"], strict=True)
    if any(n != s * m for n, m, s in rows):
        raise Rejected("circle needs one position for every stride entries of the image")


def _polyphase(conv: Node, weight: Floats) -> Floats:
    """(groups, O/g, C', *q): for stride 1 the kernel; else the dilated kernel cut into phases, which are channels."""
    groups = conv["groups"]
    out, channels, *kernel = weight.shape
    stride = conv["stride"]
    spatial = range(len(kernel))
    if all(s == 1 for s in stride):
        # Dilation moves the symbol in frequency only.
        return weight.reshape(groups, out // groups, channels, *kernel)
    extent = [d * (k - 1) + 1 for d, k in zip(conv["dilation"], kernel, strict=True)]
    taps = [-(-e // s) for e, s in zip(extent, stride, strict=True)]
    if math.prod(taps) * math.prod(stride) * out * channels > 10**8:
        raise Rejected("grid: the polyphase kernel is too large")
    wide = np.zeros((out, channels, *(q * s for q, s in zip(taps, stride, strict=True))))
    wide[(slice(None), slice(None), *(slice(0, e, d) for e, d in zip(extent, conv["dilation"], strict=True)))] = weight
    split = wide.reshape(out, channels, *(n for q, s in zip(taps, stride, strict=True) for n in (q, s)))
    order = [0, 1, *(3 + 2 * a for a in spatial), *(2 + 2 * a for a in spatial)]
    phases = split.transpose(order).reshape(out, channels * math.prod(stride), *taps)
    return phases.reshape(groups, out // groups, -1, *taps)


def _roots(count: int) -> NDArray[np.complex128]:
    """exp(-2 pi i j/count), both parts within 2u of the exact ones."""
    found = np.empty(count, dtype=np.complex128)
    with ctx.workprec(120):
        for j in range(count):
            angle = 2 * arb.pi() * j / count
            found[j] = complex(float(angle.cos().mid()), -float(angle.sin().mid()))
    return found


def prove_grid(operator: Operator, t: float, evidence: dict[str, Any]) -> None:
    """`|L| <= max over the grid of |symbol| * prod_a 1/cos(pi (q_a - 1)/(2 N_a))`, see the specification.

    The symbol at a frequency is a sum over the taps, one axis after the other, of `K e^{-i w a}`. Each axis costs a
    complex product and a sum of q_a terms with roots of unity of relative error 3u, at most `gamma_{2 q + 8}` in
    relation to the sum of absolute values; so the symbol's matrix differs from the exact one by at most
    `gamma_k sum_a |K_a|` entrywise, in norm by gamma_k times the Schur bound of that sum. As a real matrix
    R = [[Re, -Im], [Im, Re]] it has the same norm; `tau^2 I - R^T R` is proved positive definite as in `norms`
    (|R|^T |R| has norm at most the squared Frobenius norm of R).

    Raises:
        Rejected: not proved.
    """
    circle = evidence["kind"] == "circle"
    conv, scale, roundings = _chain(operator, circle)
    spatial = len(conv.shape) - 2
    counts = list(conv.shape[2:]) if circle else evidence["counts"]
    if not isinstance(counts, list) or len(counts) != spatial:
        raise Rejected(f"expected {spatial} counts")
    counts = [integer(n, "count", 1, 100_000) for n in counts]
    if t == 0:
        raise Rejected("grid proves no bound 0")
    exponent = math.frexp(t)[1]
    shape = [-1] + [1] * (spatial + 1)
    # Powers of two lose at most 2^-1075, which a scale up to 2^100 enlarges to 2^-975, and the product with the scale
    # loses as much: below the 2^-900 for each entry in `error`.
    with np.errstate(all="ignore"):
        weight = np.ldexp(conv["weight"], -exponent) * scale.reshape(shape)
    if not np.isfinite(weight).all():
        raise Rejected("grid: the scaled kernel is not finite")
    kernel = _polyphase(conv, weight)
    taps = kernel.shape[3:]
    factor = arb(1)
    with ctx.workprec(120):
        for q, n in zip(taps, counts, strict=True):
            if circle:
                break
            if n <= q - 1:
                raise Rejected(f"expected more than {q - 1} frequencies, got {n}")
            factor *= (arb.pi() * (q - 1) / (2 * n)).cos()
        limit = arb_down(arb(t) / arb(2) ** exponent * factor)
    total = np.abs(kernel).sum(axis=tuple(range(3, kernel.ndim))) * (1 + 1e-10)
    schur = max(math.sqrt(float(g.sum(axis=0).max()) * float(g.sum(axis=1).max())) for g in total) * (1 + 1e-10)
    entries = kernel.shape[1] * kernel.shape[2]
    error = 2 * gamma(sum(2 * q + 8 for q in taps) + roundings + 4) * schur + entries * 2.0**-900
    tau = limit - error
    if not tau > 0:
        raise Rejected("the grid's errors are larger than the bound")
    for group in kernel:
        for rows in _symbols(group, counts):
            _below(rows, tau)


def _symbols(kernel: Floats, counts: list[int]) -> Any:
    """Batches (B, O, C) of the symbol at the grid's frequencies; half of the first axis suffices for real kernels."""
    roots = [_roots(n) for n in counts]
    first = counts[0] // 2 + 1
    rest = math.prod(counts[1:])
    per = max(1, 2_000_000 // (rest * max(kernel.shape[0] * kernel.shape[1], 1)))
    for start in range(0, first, per):
        symbol: Any = kernel
        for axis, (n, root) in enumerate(zip(counts, roots, strict=True)):
            j = np.arange(start, min(first, start + per)) if axis == 0 else np.arange(n)
            phase = root[np.outer(j, np.arange(kernel.shape[2 + axis])) % n]
            # The first remaining tap axis is summed, the frequency axis goes to the end.
            symbol = np.tensordot(symbol, phase, axes=([2], [1]))
        yield np.moveaxis(symbol.reshape(*kernel.shape[:2], -1), -1, 0)


def _below(symbols: NDArray[np.complex128], tau: float) -> None:
    """Every matrix of the batch has norm at most tau."""
    real = np.concatenate(
        [
            np.concatenate([symbols.real, -symbols.imag], axis=2),
            np.concatenate([symbols.imag, symbols.real], axis=2),
        ],
        axis=1,
    )
    if real.shape[1] < real.shape[2]:
        real = real.transpose(0, 2, 1)
    inner, n = real.shape[1], real.shape[2]
    gram = np.matmul(real.transpose(0, 2, 1), real)
    frobenius = float((real * real).sum(axis=(1, 2)).max()) * (1 + 1e-10)
    c = 2 * gamma(inner + 2) * frobenius + 4 * gamma(n + 2) * n * tau * tau + 64 * U * max(tau * tau, frobenius)
    matrix = -gram
    matrix[:, np.arange(n), np.arange(n)] += tau * tau - c - 1e-290
    # Rump: if the factorisation completes, the smallest eigenvalue is at least -2 gamma_{n+1} tr, tr <= n tau^2.
    cholesky(matrix)
