"""Regular windows of convolutions and poolings, axis by axis, and how long a circle they need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipscope.network.nodes import AveragePool, Conv, MaxPool, Mean, Node


class NoTorus(Exception):
    """The part is not made of convolutions and what goes with them; the message says what stands in the way."""


@dataclass(frozen=True)
class Window:
    """A regular window of a convolution or pooling on one axis: `kernel` taps `dilation` apart, from `stride p - low` on."""

    size: int
    length: int
    kernel: int
    stride: int
    dilation: int
    low: int

    @property
    def needed(self) -> int:
        """How long the circle of the operand has to be so that nothing goes round."""
        last = self.stride * (self.length - 1) + self.dilation * (self.kernel - 1) - self.low
        return max(self.size + self.low, last + 1)

    @property
    def contained(self) -> bool:
        """Whether windows behind the last one lie outside the image."""
        extent = self.dilation * (self.kernel - 1) + 1
        return self.low == 0 and extent <= self.stride and self.stride * self.length >= self.size


def conv_windows(node: Conv, before: Node) -> list[Window]:
    """Of every axis."""
    rows = zip(before.shape[2:], node.shape[2:], node.weight.shape[2:], node.stride, node.dilation, node.padding, strict=True)  # fmt: skip
    return [Window(n, m, k, s, d, low) for n, m, k, s, d, (low, _) in rows]


def pool_windows(node: AveragePool | MaxPool, before: Node) -> list[Window]:
    """Of every axis, where they are all the same but for what the image's border cuts off.

    Raises:
        NoTorus: they are not, or the windows have holes, or different divisors.
    """
    if len(node.windows) != len(before.shape) - 2:
        raise NoTorus(f"{node.name!r} does not pool all axes of an image")
    found = []
    for rows, size in zip(node.windows, before.shape[2:], strict=True):
        starts, stops, third = (np.asarray(c, dtype=np.int64) for c in np.asarray(rows).T)
        third_fits = (third == 1).all() if isinstance(node, MaxPool) else (third == third[0]).all()
        kernel = int((stops - starts).max())
        low = kernel - int(stops[0]) if stops[0] < size else 0
        stride = int(starts[1]) + low if len(starts) > 1 else kernel
        nominal = np.arange(len(starts)) * stride - low
        regular = (starts == np.maximum(nominal, 0)).all() and (stops == np.minimum(nominal + kernel, size)).all()
        if not (third_fits and regular and stride > 0 and low >= 0):
            raise NoTorus(f"the windows of {node.name!r} are not all the same")
        found.append(Window(size, len(starts), kernel, stride, 1, low))
    return found


def covers(node: Node, before: Node) -> bool:
    """Whether a node is the mean over all positions of an image."""
    if isinstance(node, Mean):
        return node.axes == tuple(range(2, len(before.shape)))
    if not isinstance(node, AveragePool) or len(node.windows) != len(before.shape) - 2:
        return False
    return all(np.array_equal(w, [[0, n, n]]) for w, n in zip(node.windows, before.shape[2:], strict=True))
