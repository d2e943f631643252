"""Where the windows of a pooling layer lie, with stride, padding, dilation and `ceil_mode` resolved into indices."""

from __future__ import annotations

import numpy as np

from lipscope.claims.errors import ModelError
from lipscope.network.nodes import Array


def pooled_size(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, ceil_mode: bool) -> int:
    """The number of windows along one axis.

    With `ceil_mode` a last window may reach past the padded end, but it has to begin inside the image or the
    padding before it: torch and ONNX drop it otherwise.
    """
    span = size + sum(padding) - dilation * (kernel - 1) - 1
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + padding[0]:
        count -= 1
    return count


def average_windows(
    size: int, kernel: int, stride: int, padding: tuple[int, int], ceil_mode: bool, count_include_pad: bool
) -> Array:
    """Rows (start, stop, count) of an average pool along one axis.

    The divisor counts the window's overlap with the padded image where `count_include_pad` is set and with the image
    alone otherwise. The part of a `ceil_mode` window beyond the padding is never counted.
    """
    rows = []
    for position in range(pooled_size(size, kernel, stride, padding, 1, ceil_mode)):
        start = position * stride - padding[0]
        stop = min(start + kernel, size + padding[1])
        inside = max(start, 0), min(stop, size)
        count = stop - start if count_include_pad else inside[1] - inside[0]
        if count <= 0:
            raise ModelError(f"an average pool window at {start}:{stop} holds nothing of an axis of length {size}")
        rows.append((inside[0], max(inside), count))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def max_windows(size: int, kernel: int, stride: int, padding: tuple[int, int], dilation: int, ceil_mode: bool) -> Array:
    """Rows (start, stop, step) of a max pool along one axis, restricted to the image: padding never wins."""
    rows = []
    for position in range(pooled_size(size, kernel, stride, padding, dilation, ceil_mode)):
        start = position * stride - padding[0]
        taps = [t for t in range(start, start + dilation * (kernel - 1) + 1, dilation) if 0 <= t < size]
        if not taps:
            raise ModelError(f"a max pool window that starts at {start} holds nothing of an axis of length {size}")
        rows.append((taps[0], taps[-1] + 1, dilation))
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def adaptive_windows(size: int, outputs: int) -> list[tuple[int, int]]:
    """The (start, stop) of adaptive pooling: floor(i size/outputs) to ceil((i+1) size/outputs)."""
    return [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
