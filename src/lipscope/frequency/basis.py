"""A network restricted to a band of its inputs: an orthonormal basis of the band put in front of it.

For fixed x let `g_x(h) = f(x + Q h)`, Q an orthonormal basis of the band. It is the network with two affine nodes before it:
Q, and the addition of x. Every rule of a proof about the whole space speaks of differences alone, so that a proof for one x
is one for every x: its constant K satisfies `|f(x + P h) - f(x)| <= K |P h|` for all x and h, as `P = Q Q^T` and
`|Q^T h| = |P h|`. Nothing is asked of the nodes that read the input.

The entries of Q are irrational. With those of this module, Qt, `|Q - Qt|_F <= error(n)` for n columns; a step that begins at h
and has norm t for Qt has norm at most `t + M error(n)` for Q, M any constant of the part it spans.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipscope.claims.directions import Directions
from lipscope.claims.rounding import sqrt_up, up
from lipscope.network.graph import Graph
from lipscope.network.nodes import Dense, Input, Node, Reshape, Transpose

PREFIX = 4
"""How many nodes come before the network: node i of the graph is node i + PREFIX, its input is node PREFIX."""

LARGEST = 2**26
"""Entries of a basis that is still formed."""

LONGEST = 2**22
"""The largest common period of the grid's axes for which it is."""


def affordable(mask: NDArray[np.bool_]) -> bool:
    """Whether the basis of a band is formed, here and by the checker."""
    return mask.size * int(mask.sum()) <= LARGEST and math.lcm(4, *mask.shape) <= LONGEST


def error(columns: int) -> float:
    """At least `|Q - Qt|_F` for one channel (and so the norm of the difference for any number of them).

    With u = 2^-53 an entry is a cosine within 2.7 u of the exact one (an angle below pi/4 rounded twice, and libm), times
    `sqrt(2/G)` within 1.5 u, rounded once: `5.3 u sqrt(2/G)` in all, and `5.3 u sqrt(2) < 2^-50`.
    """
    return up(2.0**-50 * sqrt_up(float(columns)))


def cosine_table(period: int) -> NDArray[np.float64]:
    """cos(2 pi j/period), j = 0 .. period - 1, by symmetry from angles up to pi/4; the period is a multiple of 4."""
    quarter = period // 4
    first = np.array([
        math.cos(2 * math.pi * j / period) if 2 * j <= quarter else math.sin(2 * math.pi * (quarter - j) / period)
        for j in range(quarter + 1)
    ])  # fmt: skip
    falling = first[:0:-1]  # j = quarter .. 1
    return np.concatenate([first[:-1], -falling, -first[:-1], falling])


def band_basis(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Qt, (grid size, n): for a pair w, -w a cosine and a sine, for a frequency that is its own mirror image a cosine."""
    grid = mask.shape
    period = math.lcm(4, *grid)
    table = cosine_table(period)
    positions = [p.ravel() for p in np.indices(grid)]
    columns = []
    for frequency in np.argwhere(mask):
        mirror = (-frequency) % np.array(grid)
        phase = sum(int(w) * (period // n) * p for w, n, p in zip(frequency, grid, positions, strict=True)) % period
        if (mirror == frequency).all():
            columns.append(math.sqrt(1 / mask.size) * table[phase])
        elif tuple(frequency) < tuple(mirror):
            columns.append(math.sqrt(2 / mask.size) * table[phase])
            columns.append(math.sqrt(2 / mask.size) * table[(phase - period // 4) % period])
    return np.stack(columns, axis=1)


def directed(graph: Graph, directions: Directions) -> Graph:
    """The network with Qt before it: Input (channels, n), Dense, Reshape, Transpose, Reshape, then its own nodes."""
    shape, axes = directions.shape, directions.axes
    order = (*(a for a in range(len(shape)) if a not in axes), *axes)
    weight = band_basis(directions.mask)
    channels = math.prod(shape) // weight.shape[0]
    own = graph.nodes[0]
    first: tuple[Node, ...] = (
        Input(inputs=(), shape=(channels, weight.shape[1]), name="band"),
        Dense(inputs=(0,), shape=(channels, weight.shape[0]), name="band", weight=weight, axis=1),
        Reshape(inputs=(1,), shape=tuple(shape[a] for a in order), name="band"),
        Transpose(inputs=(2,), shape=shape, name="band", permutation=tuple(int(i) for i in np.argsort(order))),
        Reshape(inputs=(3,), shape=own.shape, name=own.name or "input"),
    )
    rest = tuple(replace(node, inputs=tuple(i + PREFIX for i in node.inputs)) for node in graph.nodes[1:])
    return replace(
        graph, nodes=(*first, *rest), output=graph.output + PREFIX, input_shapes=((channels, weight.shape[1]),)
    )
