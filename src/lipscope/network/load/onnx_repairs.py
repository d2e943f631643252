"""Operators for which the reference evaluator of `onnx` contradicts their schemas, written out again.

Each is checked against a runtime in the tests; the evaluator runs everything else itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_pad import Pad_18
from onnx.reference.ops.op_resize import Resize as EvaluatorResize

Array = NDArray[Any]


def _schema(operator: str, version: int) -> Any:
    return onnx.defs.get_schema(operator, version, "")


class BatchNormalization(OpRun):
    """Inference before opset 14. The evaluator normalises with batch statistics there as soon as `momentum` is set."""

    op_domain = ""
    op_schema = _schema("BatchNormalization", 9)

    def _run(self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, **attributes: Any) -> tuple[Array]:
        column = (-1, *(1,) * (x.ndim - 2))
        centred = x - mean.reshape(column)
        scaled = scale.reshape(column) * centred / np.sqrt(var.reshape(column) + attributes["epsilon"])
        return ((scaled + bias.reshape(column)).astype(x.dtype),)


def _flat(x: Array, axis: int) -> Array:
    return x.reshape(int(np.prod(x.shape[: axis % x.ndim], dtype=np.int64)), -1)


class Softmax(OpRun):
    """Before opset 13: all axes from `axis` on are one. The evaluator has the later meaning only."""

    op_domain = ""
    op_schema = _schema("Softmax", 11)

    def _run(self, x: Array, axis: int) -> tuple[Array]:
        flat = _flat(x, axis)
        powers = np.exp(flat - flat.max(axis=1, keepdims=True))
        return ((powers / powers.sum(axis=1, keepdims=True)).reshape(x.shape),)


class LogSoftmax(OpRun):
    """Before opset 13: all axes from `axis` on are one. The evaluator has the later meaning only."""

    op_domain = ""
    op_schema = _schema("LogSoftmax", 11)

    def _run(self, x: Array, axis: int) -> tuple[Array]:
        flat = _flat(x, axis)
        low = flat - flat.max(axis=1, keepdims=True)
        return ((low - np.log(np.exp(low).sum(axis=1, keepdims=True))).reshape(x.shape),)


class Mean(OpRun):
    """The evaluator fails where a later operand is larger than the first."""

    op_domain = ""

    def _run(self, *operands: Array) -> tuple[Array]:
        return ((sum(operands[1:], operands[0]) / len(operands)).astype(operands[0].dtype),)


class LpNormalization(OpRun):
    """The evaluator forgets the absolute value for p = 1."""

    op_domain = ""

    def _run(self, x: Array, axis: int, p: int) -> tuple[Array]:
        norm = np.sum(np.abs(x) ** p, axis=axis, keepdims=True) ** (1.0 / p)
        return (np.where(norm == 0, 0, x / np.where(norm == 0, 1, norm)).astype(x.dtype),)


class LRN(OpRun):
    """The evaluator fills as many channels as the batch is long."""

    op_domain = ""

    def _run(self, x: Array, alpha: float, beta: float, bias: float, size: int) -> tuple[Array]:
        before, after = (size - 1) // 2, size // 2
        squares = [np.sum(x[:, max(c - before, 0) : c + after + 1] ** 2, axis=1) for c in range(x.shape[1])]
        return ((x / (bias + alpha / size * np.stack(squares, axis=1)) ** beta).astype(x.dtype),)


class DequantizeLinear(OpRun):
    """Before opset 19; the evaluator has none."""

    op_domain = ""
    op_schema = _schema("DequantizeLinear", 13)

    def _run(self, x: Array, scale: Array, zero: Array | None = None, axis: int = 1) -> tuple[Array]:
        column = [-1 if a == axis % x.ndim else 1 for a in range(x.ndim)] if scale.size > 1 else []
        shift = 0.0 if zero is None else zero.astype(scale.dtype).reshape(column)
        return (((x.astype(scale.dtype) - shift) * scale.reshape(column)).astype(scale.dtype),)


class GlobalLpPool(OpRun):
    """The evaluator has none."""

    op_domain = ""

    def _run(self, x: Array, p: int) -> tuple[Array]:
        axes = tuple(range(2, x.ndim))
        return ((np.sum(np.abs(x) ** p, axis=axes, keepdims=True) ** (1.0 / p)).astype(x.dtype),)


class Pad(Pad_18):
    """From opset 11 on; the evaluator cannot crop (negative widths)."""

    op_domain = ""
    op_schema = _schema("Pad", 19)

    def _run(self, x: Array, pads: Array, value: Any = None, axes: Any = None, mode: str = "constant") -> Any:
        chosen = range(x.ndim) if axes is None else [int(a) % x.ndim for a in axes]
        for axis, low, high in zip(chosen, pads[: len(chosen)], pads[len(chosen) :], strict=True):
            x = np.take(x, range(max(-low, 0), x.shape[axis] - max(-high, 0)), axis)
        return super()._run(x, np.maximum(pads, 0), value, axes, mode=mode)  # type: ignore[no-untyped-call]


def resized(length: int, scale: float, mode: str = "") -> tuple[int, float]:
    """Output length and scale of an axis.

    The length is the floor of the float32 product, as in ONNX's shape inference and in runtimes: 5 times 2.6 is 13,
    though the float32 number 2.6 is a little less. The scale is changed, in its last digits, where it does not give
    that length exactly; and to the quotient of the lengths where the schema's formula for the coordinate mode speaks of
    lengths (the evaluator takes the product length * scale, not rounded down, for one).
    """
    out = int(np.floor(np.float32(length) * np.float32(scale)))
    by_length = mode == "align_corners" or (mode == "pytorch_half_pixel" and out == 1)
    exact = int(np.floor(length * float(scale))) == out and not by_length
    return out, float(scale) if exact else out / length


def _sampled(x: Array, scales: Array, mode: str, shift: float = 0.0) -> Array:
    """Positions (i + shift)/scale on each axis: the entry below, or linear interpolation."""
    for axis, factor in enumerate(np.asarray(scales, dtype=np.float64)):
        length = x.shape[axis]
        out, scale = resized(length, float(factor))
        positions = (np.arange(out) + shift) / scale
        if mode == "nearest":
            x = np.take(x, np.minimum(np.floor(positions).astype(np.int64), length - 1), axis)
        else:
            dtype, grid = x.dtype, np.arange(length)
            x = np.apply_along_axis(lambda row: np.interp(positions, grid, row), axis, x).astype(dtype)  # noqa: B023
    return x


class Upsample(OpRun):
    """Opset 9. The evaluator knows whole factors and copies only."""

    op_domain = ""
    op_schema = _schema("Upsample", 9)

    def _run(self, x: Array, scales: Array, mode: str) -> tuple[Array]:
        return (_sampled(x, scales, mode),)


class Upsample7(OpRun):
    """Opsets 7 and 8: the factors are an attribute."""

    op_domain = ""
    op_schema = _schema("Upsample", 7)

    def _run(self, x: Array, mode: str, scales: list[float]) -> tuple[Array]:
        return (_sampled(x, np.asarray(scales, dtype=np.float32), mode),)


class Resize10(OpRun):
    """Opset 10: Upsample under its new name."""

    op_domain = ""
    op_schema = _schema("Resize", 10)

    def _run(self, x: Array, scales: Array, mode: str) -> tuple[Array]:
        return (_sampled(x, scales, mode),)


# The evaluator goes by the name of the class.
Upsample7.__name__, Resize10.__name__ = "Upsample", "Resize"


class Resize(EvaluatorResize):
    """From opset 11 on; the evaluator lacks `tf_half_pixel_for_nn`, and rounds lengths in its own way."""

    op_domain = ""
    op_schema = _schema("Resize", 19)

    def _run(self, x: Array, roi: Any = None, scales: Any = None, sizes: Any = None, **attributes: Any) -> Any:  # type: ignore[override]
        if scales is not None and np.size(scales):
            axes = attributes.get("axes") or range(x.ndim)
            mode = attributes["coordinate_transformation_mode"]
            scales = np.array([resized(x.shape[a], s, mode)[1] for a, s in zip(axes, scales, strict=True)])
        if attributes.get("coordinate_transformation_mode") != "tf_half_pixel_for_nn":
            return super()._run(x, roi, scales, sizes, **attributes)
        if sizes is not None and np.size(sizes):
            scales = np.asarray(sizes, dtype=np.float64) / x.shape
        return (_sampled(x, scales, "nearest", 0.5),)


def repairs(opset: int) -> list[type[OpRun]]:
    """Operators that replace the evaluator's own."""
    found: list[type[OpRun]] = [Mean, LpNormalization, LRN, GlobalLpPool]
    if opset < 19:
        found.append(DequantizeLinear)
    if opset < 14:
        found.append(BatchNormalization)
    if opset < 13:
        found += [Softmax, LogSoftmax]
    found.append(Upsample7 if opset < 9 else Upsample)
    found.append(Resize10 if opset < 11 else Resize)
    if opset >= 11:
        found.append(Pad)
    return found
