"""Convolution, pooling, resizing, slicing and padding over random attributes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from lipscope.claims.errors import UnsupportedError
from network.onnx_cases import agrees, model_of

F = np.float32
FEW = settings(max_examples=40, deadline=None, derandomize=True)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(F)


@st.composite
def windows(draw, dilations=True):
    """Attributes of a sliding window over one to three axes, and a spatial shape that it fits."""
    rank = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    stride = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [draw(st.integers(1, 2)) if dilations else 1 for _ in range(rank)]
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    spatial = [e + draw(st.integers(0, 4)) for e in extent]
    attributes = {"strides": stride} | ({"dilations": dilation} if dilations else {})
    auto = draw(st.sampled_from(["", "", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto:
        attributes["auto_pad"] = auto
    else:
        low, high = ([draw(st.integers(0, k - 1)) for k in kernel] for _ in range(2))
        attributes["pads"] = low + high
    return spatial, kernel, attributes


def tiny(operator, opset, shape, constants=(), **attributes):
    names = ["x", *(f"c{i}" if c is not None else "" for i, c in enumerate(constants))]
    stored = {f"c{i}": c for i, c in enumerate(constants) if c is not None}
    return model_of([helper.make_node(operator, names, ["y"], **attributes)], {"x": shape}, stored, opset=opset)


@FEW
@given(windows(), st.sampled_from([7, 11, 13]), st.sampled_from([1, 2]), st.booleans())
def test_conv(window, opset, groups, bias):
    spatial, kernel, attributes = window
    assume(not ("auto_pad" in attributes and max(attributes["dilations"]) > 1))  # the runtime refuses it for some
    constants = (normal(4, 2 // groups, *kernel), normal(4)) if bias else (normal(4, 2 // groups, *kernel),)
    model = tiny("Conv", opset, ["n", 2, *spatial], constants, group=groups, **attributes)
    agrees(model, reference=groups == 1 and "auto_pad" not in attributes, tolerance=1e-4)


@FEW
@given(windows(), st.sampled_from([7, 11, 13]), st.sampled_from([1, 2]), st.data())
def test_conv_transpose(window, opset, groups, data):
    spatial, kernel, attributes = window
    attributes.pop("dilations")
    kind = data.draw(st.sampled_from(["plain", "output_padding", "output_shape"]))
    stride = attributes["strides"]
    if kind == "output_padding":
        attributes["output_padding"] = [data.draw(st.integers(0, s - 1)) for s in stride]
    if kind == "output_shape":
        attributes.pop("pads", None)
        attributes["output_shape"] = [
            (n - 1) * s + k - data.draw(st.integers(0, 1 if k > 1 else 0))
            for n, s, k in zip(spatial, stride, kernel, strict=True)
        ]
    if kind != "output_shape" and attributes.get("auto_pad", "").startswith("SAME"):
        attributes.pop("auto_pad")
    model = tiny("ConvTranspose", opset, [1, 2, *spatial], (normal(2, 4 // groups, *kernel), normal(4)),
                 group=groups, **attributes)  # fmt: skip
    agrees(model, reference=False, tolerance=1e-4)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_conv_transpose_with_automatic_padding(mode, kernel):
    weight = normal(2, 3, kernel, kernel)
    model = tiny("ConvTranspose", 11, [1, 2, 4, 3], (weight,), strides=[2, 2], auto_pad=mode)
    source = agrees(model, reference=False, tolerance=1e-4)
    assert source.graph.output_shapes == ((3, 8, 6),)


@FEW
@given(windows(), st.sampled_from([8, 10, 12]), st.booleans())
def test_max_pool(window, opset, ceil):
    spatial, kernel, attributes = window
    if opset < 10:
        attributes.pop("dilations")
        ceil = False
    if "auto_pad" in attributes:
        attributes.pop("dilations", None)
        ceil = False
        assume(all(s <= k for s, k in zip(attributes["strides"], kernel, strict=True)))  # the runtime's limit
    extra = {"ceil_mode": 1} if ceil else {}
    model = tiny("MaxPool", opset, [1, 2, *spatial], kernel_shape=kernel, **attributes, **extra)
    agrees(model, reference=False)


@FEW
@given(windows(dilations=False), st.sampled_from([7, 10, 11, 19]), st.booleans(), st.booleans())
def test_average_pool(window, opset, ceil, padded):
    spatial, kernel, attributes = window
    if opset < 10 or "auto_pad" in attributes:
        ceil = False
    if "auto_pad" in attributes:
        assume(all(s <= k for s, k in zip(attributes["strides"], kernel, strict=True)))  # the runtime's limit
    # With ceil_mode and count_include_pad the runtime counts entries beyond the padding before opset 19.
    assume(not (ceil and padded and opset < 19))
    extra = ({"ceil_mode": 1} if ceil else {}) | ({"count_include_pad": 1} if padded else {})
    model = tiny("AveragePool", opset, [1, 2, *spatial], kernel_shape=kernel, **attributes, **extra)
    agrees(model, reference=False)


@FEW
@given(windows(), st.booleans())
def test_average_pool_with_dilation(window, padded):
    spatial, kernel, attributes = window
    assume("auto_pad" not in attributes)
    model = tiny("AveragePool", 19, [1, 2, *spatial], kernel_shape=kernel, count_include_pad=int(padded), **attributes)
    agrees(model, reference=False)


SCALES = [0.5, 0.6, 1.0, 1.5, 2.0, 3.0, 2.6]
MODES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


@FEW
@given(st.data())
def test_resize_to_nearest(data):
    opset = data.draw(st.sampled_from([11, 13, 18, 19]))
    attributes = {
        "mode": "nearest",
        "coordinate_transformation_mode": data.draw(
            st.sampled_from([*MODES, "tf_half_pixel_for_nn"] if opset == 11 else MODES)
        ),
        "nearest_mode": data.draw(st.sampled_from(NEAREST)),
    }
    if attributes["coordinate_transformation_mode"] == "tf_half_pixel_for_nn":
        attributes["nearest_mode"] = "floor"
    agrees(resized(data, opset, attributes), reference=opset > 11)


@FEW
@given(st.data())
def test_resize_by_interpolation(data):
    opset = data.draw(st.sampled_from([11, 13, 18, 19]))
    attributes = {"mode": data.draw(st.sampled_from(["linear", "linear", "cubic"])),
                  "coordinate_transformation_mode": data.draw(st.sampled_from(MODES))}  # fmt: skip
    model = resized(data, opset, attributes)
    try:
        agrees(model, tolerance=1e-4, reference=opset > 11)
    except UnsupportedError as error:
        assert "cubic interpolation to one entry" in str(error)


def resized(data, opset, attributes):
    spatial = [data.draw(st.integers(2, 5)) for _ in range(2)]
    roi = np.zeros(0, dtype=F) if opset < 13 else None
    if data.draw(st.booleans()):
        sizes = np.array([1, 2, *(data.draw(st.integers(2, 9)) for _ in range(2))], dtype=np.int64)
        constants = (roi, np.zeros(0, dtype=F) if opset < 13 else None, sizes)
    else:
        constants = (roi, np.array([1, 1, *(data.draw(st.sampled_from(SCALES)) for _ in range(2))], dtype=F))
    return tiny("Resize", opset, [1, 2, *spatial], constants, **attributes)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [(2.0, 2.0), (1.5, 3.0), (1.0, 2.6)])
def test_upsample_and_the_first_resize(mode, scales):
    four = np.array([1, 1, *scales], dtype=F)
    agrees(tiny("Upsample", 7, [1, 2, 3, 4], scales=four.tolist(), mode=mode))
    agrees(tiny("Upsample", 9, [1, 2, 3, 4], (four,), mode=mode))
    agrees(tiny("Resize", 10, [1, 2, 3, 4], (four,), mode=mode))


def test_resize_of_chosen_axes():
    model = tiny("Resize", 18, [1, 2, 3, 4], (None, np.array([2.0, 0.5], dtype=F)), axes=[2, 3], mode="nearest")
    assert agrees(model, reference=False).graph.output_shapes == ((2, 6, 2),)


@FEW
@given(
    st.lists(
        st.tuples(st.integers(-7, 7), st.integers(-7, 7), st.sampled_from([-3, -2, -1, 1, 2, 3])),
        min_size=1,
        max_size=2,
    )
)
def test_slice(pieces):
    shape = [1, 5, 4]
    axes = [1, 2][: len(pieces)]
    assume(all(len(range(shape[a])[i:j:k]) for a, (i, j, k) in zip(axes, pieces, strict=True)))
    columns = [np.array(column, dtype=np.int64) for column in zip(*pieces, strict=True)]
    model = tiny("Slice", 13, shape, (columns[0], columns[1], np.array(axes), columns[2]))
    agrees(model)


@FEW
@given(st.lists(st.integers(-1, 2), min_size=4, max_size=4), st.sampled_from(["constant", "edge", "reflect"]))
def test_pad(widths, mode):
    assume(mode == "constant" or min(widths) >= 0)
    pads = np.array([0, widths[0], widths[1], 0, widths[2], widths[3]], dtype=np.int64)
    agrees(tiny("Pad", 13, [1, 4, 5], (pads, np.array(0.5, dtype=F)), mode=mode))
