"""Convolutions, pools, paddings and slices over their attributes, against torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lipscope.claims.errors import ModelError
from network.torch_cases import agrees, calls, shake

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
SIDE = st.integers(1, 9)
small = st.integers(1, 3)


@QUICK
@given(SIDE, SIDE, small, small, small, small, st.integers(0, 3), small, st.sampled_from([1, 2]), st.booleans())
def test_convolution(height, width, k0, k1, stride, s1, padding, dilation, groups, bias):
    assume(dilation * (max(k0, k1) - 1) + 1 <= min(height, width) + 2 * padding)
    layer = torch.nn.Conv2d(2, 4, (k0, k1), (stride, s1), padding, dilation, groups, bias)
    agrees(shake(layer.double()).eval(), (2, height, width))


@QUICK
@given(SIDE, small, small, st.integers(0, 2), st.integers(0, 2), small, st.sampled_from([1, 2]), st.booleans())
def test_transposed_convolution(width, kernel, stride, padding, extra, dilation, groups, bias):
    assume(extra < max(stride, dilation))
    assume((width - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1 > 0)
    layer = torch.nn.ConvTranspose1d(4, 2, kernel, stride, padding, extra, groups, bias, dilation)
    agrees(shake(layer.double()).eval(), (4, width))


@QUICK
@given(SIDE, SIDE, small, small, small, st.integers(0, 1), small, st.booleans())
def test_max_pool(height, width, k0, k1, stride, padding, dilation, ceil_mode):
    assume(padding <= min(k0, k1) // 2)
    assume(dilation * (max(k0, k1) - 1) + 1 <= min(height, width) + 2 * padding)
    pool = torch.nn.MaxPool2d((k0, k1), stride, padding, dilation, ceil_mode=ceil_mode).eval()
    if pool(torch.zeros(1, 2, height, width)).isfinite().all():
        agrees(pool, (2, height, width))
    else:
        with pytest.raises(ModelError, match="holds nothing"):
            agrees(pool, (2, height, width))


@QUICK
@given(SIDE, SIDE, small, small, small, st.integers(0, 1), st.booleans(), st.booleans(), st.sampled_from([None, 1, 7]))
def test_average_pool(height, width, k0, k1, stride, padding, ceil_mode, count_include_pad, divisor):
    assume(padding <= min(k0, k1) // 2)
    assume(max(k0, k1) <= min(height, width) + 2 * padding)
    pool = torch.nn.AvgPool2d((k0, k1), stride, padding, ceil_mode, count_include_pad, divisor)
    agrees(pool.eval(), (2, height, width))


@QUICK
@given(SIDE, SIDE, SIDE, SIDE)
def test_adaptive_pools(height, width, rows, columns):
    agrees(torch.nn.AdaptiveAvgPool2d((rows, columns)).eval(), (2, height, width))
    agrees(torch.nn.AdaptiveMaxPool2d((rows, columns)).eval(), (2, height, width))


@QUICK
@given(
    SIDE, SIDE, st.sampled_from(["constant", "reflect", "replicate", "circular"]), st.tuples(*[st.integers(-2, 4)] * 4)
)
def test_padding(height, width, mode, pads):
    assume(width + pads[0] + pads[1] > 0 and height + pads[2] + pads[3] > 0)
    assume(min(width, width + min(pads[:2])) > 0 and min(height, height + min(pads[2:])) > 0)
    if mode == "constant":
        agrees(calls(lambda x: F.pad(x, pads, value=1.5)), (2, height, width))
        return
    assume(min(pads) >= 0)
    limit = {"reflect": -1, "replicate": 99, "circular": 0}[mode]
    assume(max(pads[:2]) <= width + limit and max(pads[2:]) <= height + limit)
    agrees(calls(lambda x: F.pad(x, pads, mode)), (2, height, width))


@QUICK
@given(SIDE, st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9), small)
def test_slice(length, start, stop, step):
    assume(len(range(length)[start:stop:step]))
    agrees(calls(lambda x: x[:, :, start:stop:step]), (2, length))


@QUICK
@given(SIDE, st.integers(1, 12), st.sampled_from(["linear", "nearest", "nearest-exact", "area"]), st.booleans())
def test_interpolation(length, target, mode, corners):
    agrees(
        calls(lambda x: F.interpolate(x, target, mode=mode, align_corners=corners if mode == "linear" else None)),
        (2, length),
    )


@QUICK
@given(st.permutations("abc"), st.permutations("bcd"), st.permutations("abcd"), st.integers(0, 4))
def test_einsum(left, right, result, length):
    sizes = {"a": 2, "b": 3, "c": 4, "d": 5}
    equation = f"{''.join(left)},{''.join(right)}->{''.join(result[:length])}"
    count = 24

    def function(x):
        a = x[0, :count].reshape([sizes[c] for c in left])
        b = x[0, count:].reshape([sizes[c] for c in right])
        return torch.einsum(equation, a, b).reshape(1, -1)

    agrees(calls(function), (24 + 60,))
