"""Resize and Upsample: along each axis a selection of entries or a fixed matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from lipscope.network.load.lowering import Operand
from lipscope.network.load.onnx_ops.call import Call, Handlers, Refusal
from lipscope.network.load.onnx_reference import run_node
from lipscope.network.load.onnx_repairs import resized
from lipscope.network.nodes import Array, Shape

_PASSED = ("mode", "nearest_mode", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "antialias")


def _sizes(
    call: Call, shape: Shape, scales: Array | None, sizes: Array | None, mode: str
) -> tuple[list[int], list[float]]:
    """Output length and scale of every axis."""
    axes = call.attribute("axes", list(range(len(shape)))) if call.opset >= 18 else list(range(len(shape)))
    out, factor = list(shape), [1.0] * len(shape)
    given = scales if sizes is None else sizes
    if given is None or np.size(given) != len(axes):
        raise Refusal("expected one scale or size for every axis")
    for axis, value in zip(axes, np.reshape(given, -1), strict=True):
        if sizes is None:
            out[axis], factor[axis] = resized(shape[axis], float(value), mode)
        else:
            out[axis], factor[axis] = int(value), float(value) / shape[axis]
    return out, factor


def _matrix(length: int, out: int, scale: float, attributes: dict[str, Any]) -> Array:
    """(out, length): what the operator does along one axis, read off from its values on the identity matrix."""
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], **attributes)
    (columns,) = run_node(node, [np.eye(length), None, np.array([1.0, scale])], 19)
    if columns.shape != (length, out):
        raise Refusal(f"the length {length} scaled by {scale} is {columns.shape[1]}, expected {out}")
    return np.ascontiguousarray(columns.T)


def _nearest_for_tf(length: int, out: int, scale: float) -> Array:
    """`tf_half_pixel_for_nn`: the entry below (x + 0.5)/scale."""
    below: Array = np.minimum(np.floor((np.arange(out) + 0.5) / scale), length - 1).astype(np.int64)
    return below


def _interpolated(call: Call, scales: Array | None, sizes: Array | None, attributes: dict[str, Any]) -> Operand:
    x = call.x
    nearest = attributes["mode"] == "nearest"
    mode = str(attributes["coordinate_transformation_mode"])
    out, factor = _sizes(call, x.shape, scales, sizes, mode)
    if mode == "pytorch_half_pixel" and attributes["mode"] == "cubic" and 1 in out[2:]:
        raise Refusal("cubic interpolation to one entry means different things to different runtimes; crop or average")
    if mode == "tf_crop_and_resize":
        raise Refusal("cropping (tf_crop_and_resize) is not understood; crop with Slice before it")
    steps: list[Array | None] = []
    for length, target, scale in zip(x.shape, out, factor, strict=True):
        if scale == 1.0 and target == length:
            steps.append(None)
        elif mode == "tf_half_pixel_for_nn":
            if not nearest:
                raise Refusal("tf_half_pixel_for_nn belongs to nearest neighbours")
            steps.append(_nearest_for_tf(length, target, scale))
        else:
            matrix = _matrix(length, target, scale, attributes)
            steps.append(matrix.argmax(axis=1) if nearest else matrix)
    return call.lowering.resize_nearest(x, steps) if nearest else call.lowering.resize_linear(x, steps)


def _resize(call: Call) -> Operand:
    if call.opset < 11:
        return _upsample(call)
    if call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refusal("sizes that keep the aspect ratio are not understood; give the sizes themselves")
    scales, sizes = call.maybe_constant(2, "scales"), call.maybe_constant(3, "sizes")
    attributes: dict[str, Any] = {name: call.attribute(name) for name in _PASSED if name in call.attributes}
    attributes.setdefault("mode", "nearest")
    attributes.setdefault("coordinate_transformation_mode", "half_pixel")
    sizes = sizes if sizes is not None and np.size(sizes) else None
    return _interpolated(call, scales if scales is not None and np.size(scales) else None, sizes, attributes)


def _upsample(call: Call) -> Operand:
    """Upsample, and Resize before opset 11: positions x/scale, the nearest entry being the one below."""
    if call.opset < 9:
        scales: Array = np.asarray(call.attribute("scales"), dtype=np.float32)
    else:
        scales = call.constant(1, "scales")
    mode = call.attribute("mode", "nearest")
    attributes = {
        "mode": "linear" if mode == "bilinear" else mode,
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    }
    return _interpolated(call, scales, None, attributes)


HANDLERS: Handlers = {"Resize": _resize, "Upsample": _upsample}
