"""Every operation of torch that is understood, in a tiny module of its own, against torch itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lipscope.claims.errors import ModelError, UnsupportedError
from lipscope.network.load.torch_export import from_module, list_operations_torch
from network.torch_cases import agrees, calls, shake

VECTOR, TOKENS, IMAGE, LINE, VOLUME = (6,), (5, 8), (4, 8, 8), (4, 9), (2, 5, 4, 6)


def activation(module: nn.Module):
    return (type(module).__name__, module, VECTOR)


LAYERS = [
    *map(activation, (
        nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.3), nn.PReLU(), nn.PReLU(6), nn.RReLU(0.1, 0.4), nn.ELU(0.7),
        nn.CELU(0.6), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(),
        nn.Hardtanh(-0.5, 2), nn.Sigmoid(), nn.LogSigmoid(), nn.Tanh(), nn.Tanhshrink(), nn.Softplus(), nn.Softplus(2.5),
        nn.Softsign(), nn.Softshrink(0.4), nn.Hardshrink(0.4), nn.Threshold(0.1, 0.1), nn.Threshold(0.1, -2), nn.GLU(),
        nn.Softmin(1), nn.Softmax(1), nn.LogSoftmax(1), nn.Identity(), nn.Dropout(), nn.AlphaDropout(), nn.Flatten(0),
        nn.Linear(6, 4), nn.Linear(6, 4, bias=False), nn.RMSNorm(6, eps=1e-3), nn.LayerNorm(6), nn.BatchNorm1d(6),
        nn.BatchNorm1d(6, affine=False), nn.Unflatten(1, (2, 3)),
    )),
    ("PReLU channels", nn.PReLU(4), IMAGE),
    ("Dropout2d", nn.Dropout2d(), IMAGE),
    ("Softmax2d", nn.Softmax2d(), IMAGE),
    ("LayerNorm image", nn.LayerNorm((8, 8), elementwise_affine=False), IMAGE),
    ("BatchNorm2d", nn.BatchNorm2d(4), IMAGE),
    ("BatchNorm3d", nn.BatchNorm3d(2), VOLUME),
    ("GroupNorm", nn.GroupNorm(2, 4), IMAGE),
    ("InstanceNorm", nn.InstanceNorm2d(4), IMAGE),
    ("InstanceNorm affine", nn.InstanceNorm2d(4, affine=True), IMAGE),
    ("InstanceNorm running", nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
    ("Conv1d", nn.Conv1d(4, 3, 3, padding=2, dilation=2, stride=2), LINE),
    ("Conv3d", nn.Conv3d(2, 3, (2, 3, 1), padding=1), VOLUME),
    ("Conv same", nn.Conv2d(4, 3, (4, 3), padding="same", dilation=(1, 2)), IMAGE),
    ("Conv circular", nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), IMAGE),
    ("Conv reflect", nn.Conv2d(4, 3, 3, padding=2, padding_mode="reflect"), IMAGE),
    ("Conv replicate", nn.Conv2d(4, 3, 3, padding=1, padding_mode="replicate"), IMAGE),
    ("Conv depthwise", nn.Conv2d(4, 8, 3, groups=4), IMAGE),
    ("ConvTranspose1d", nn.ConvTranspose1d(4, 3, 4, stride=3, padding=1, output_padding=2), LINE),
    ("ConvTranspose2d", nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2), IMAGE),
    ("ConvTranspose3d", nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False), VOLUME),
    ("MaxPool1d", nn.MaxPool1d(3, 2, 1), LINE),
    ("MaxPool2d ceil", nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    ("MaxPool2d dilated", nn.MaxPool2d(3, 1, dilation=2), IMAGE),
    ("MaxPool3d", nn.MaxPool3d(2), VOLUME),
    ("AvgPool1d", nn.AvgPool1d(3, 2, 1), LINE),
    ("AvgPool2d", nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), IMAGE),
    ("AvgPool2d padded", nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    ("AvgPool2d divisor", nn.AvgPool2d(3, 2, 1, divisor_override=5), IMAGE),
    ("AvgPool3d", nn.AvgPool3d(2), VOLUME),
    ("AdaptiveAvgPool1d", nn.AdaptiveAvgPool1d(4), LINE),
    ("AdaptiveAvgPool2d", nn.AdaptiveAvgPool2d((3, None)), IMAGE),
    ("AdaptiveAvgPool3d", nn.AdaptiveAvgPool3d(2), VOLUME),
    ("AdaptiveMaxPool1d", nn.AdaptiveMaxPool1d(4), LINE),
    ("AdaptiveMaxPool2d", nn.AdaptiveMaxPool2d(3), IMAGE),
    ("LPPool2d", nn.LPPool2d(2, 3), IMAGE),
    ("ZeroPad2d", nn.ZeroPad2d((1, 2, 0, 3)), IMAGE),
    ("ZeroPad2d crop", nn.ZeroPad2d((-1, 2, 0, -3)), IMAGE),
    ("ConstantPad1d", nn.ConstantPad1d(2, -1.5), LINE),
    ("CircularPad2d", nn.CircularPad2d((1, 2, 0, 3)), IMAGE),
    ("ReflectionPad1d", nn.ReflectionPad1d((2, 3)), LINE),
    ("ReplicationPad3d", nn.ReplicationPad3d(1), VOLUME),
    ("Upsample", nn.Upsample(scale_factor=2), IMAGE),
    ("Upsample bilinear", nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    ("Upsample corners", nn.Upsample(size=(5, 11), mode="bilinear", align_corners=True), IMAGE),
    ("PixelShuffle", nn.PixelShuffle(2), IMAGE),
    ("PixelUnshuffle", nn.PixelUnshuffle(2), IMAGE),
    ("ChannelShuffle", nn.ChannelShuffle(2), IMAGE),
    ("LocalResponseNorm", nn.LocalResponseNorm(2), IMAGE),
    ("Bilinear", calls(lambda m, x: m.b(x, x), b=nn.Bilinear(6, 6, 3)), VECTOR),
    ("MultiheadAttention", calls(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)), TOKENS),
    ("MultiheadAttention lean",
     calls(lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(8, 2, batch_first=True)), TOKENS),
    ("TransformerEncoderLayer", nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), TOKENS),
    ("TransformerEncoderLayer first",
     nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True, activation="gelu"), TOKENS),
]  # fmt: skip

KEEP = torch.tensor([2, 0, 5])
MASK = torch.tensor([True, False, True, True, False, True])

FUNCTIONS = [
    (lambda x: x.T, VECTOR), (lambda x: x.mT, IMAGE), (lambda x: x.permute(0, 2, 3, 1), IMAGE),
    (lambda x: x.movedim(1, 3), IMAGE), (lambda x: x.swapaxes(1, 2), IMAGE), (lambda x: x.transpose(-1, -3), IMAGE),
    (lambda x: torch.einsum("bchw,dc->bdhw", x, torch.arange(12.0, dtype=x.dtype).reshape(3, 4)), IMAGE),
    (lambda x: torch.einsum("bchw->bc", x), IMAGE), (lambda x: torch.einsum("bi,bj->bij", x, x.sin()), VECTOR),
    (lambda x: torch.einsum("bij,bkj->bik", x, x), TOKENS), (lambda x: torch.einsum("bij,bkj", x, x), TOKENS),
    (lambda x: x.tile(1, 2), VECTOR), (lambda x: x.repeat(2, 1, 3), VECTOR), (lambda x: x.repeat_interleave(3, 1), VECTOR),
    (lambda x: x.roll((1, -2), (1, 2)), IMAGE), (lambda x: x.roll(3), IMAGE), (lambda x: x.flip(1, -1), IMAGE),
    (lambda x: torch.rot90(x, 1, (2, 3)), IMAGE),
    (lambda x: x.chunk(4, 1)[1], VECTOR), (lambda x: x.split([1, 3, 2], 1)[1], VECTOR), (lambda x: x.split(4, 1)[1], VECTOR),
    (lambda x: x.unbind(1)[4], VECTOR), (lambda x: x.narrow(1, 1, 3), VECTOR), (lambda x: x[:, -2], VECTOR),
    (lambda x: x[:, 1:-1:2], VECTOR), (lambda x: x[..., None, -3:], VECTOR), (lambda x: x[:, KEEP], VECTOR),
    (lambda x: x.index_select(1, KEEP), VECTOR), (lambda x: x.gather(1, KEEP[None]), VECTOR), (lambda x: x[:, MASK], VECTOR),
    (lambda x: x[:, [0, 1, 3], [2, 2, 7]], IMAGE), (lambda x: x.diagonal(1, 2, 3), IMAGE), (lambda x: x.unfold(2, 3, 2), LINE),
    (lambda x: F.unfold(x, 3, padding=1, stride=2), IMAGE), (lambda x: x.tril(-1) + x.triu(2), (6, 6)),
    (lambda x: x.cumsum(2), IMAGE), (lambda x: x.diff(dim=1), VECTOR),
    (lambda x: torch.cat([x, x.sin(), torch.ones(1, 2, dtype=x.dtype)], 1), VECTOR), (lambda x: torch.stack([x, -x], 1), VECTOR),
    (lambda x: torch.hstack([x, x]), VECTOR), (lambda x: torch.vstack([x, x]), VECTOR),
    (lambda x: x.unsqueeze(1).expand(-1, 3, -1), VECTOR), (lambda x: x.broadcast_to(2, 6), VECTOR),
    (lambda x: x.unsqueeze(2).squeeze(), VECTOR), (lambda x: x.view(x.size(0), -1), IMAGE), (lambda x: x.reshape_as(x), IMAGE),
    (lambda x: x.sort(1)[0], VECTOR), (lambda x: x.sort(1, descending=True).values, VECTOR),
    (lambda x: x.topk(6, 1)[0], VECTOR), (lambda x: x.topk(2, 1, largest=False).values, VECTOR), (lambda x: x.median(1)[0], VECTOR),
    (lambda x: x.kthvalue(2, 1).values, VECTOR), (lambda x: torch.cat([torch.maximum(*x.chunk(2, 1)), torch.minimum(*x.chunk(2, 1))], 1), VECTOR),
    (lambda x: x.max(1)[0], VECTOR), (lambda x: x.amax((2, 3), keepdim=True), IMAGE), (lambda x: x.max().reshape(1, 1), VECTOR),
    (lambda x: x.min(1, keepdim=True).values, VECTOR), (lambda x: x.amin((1, 2)), IMAGE), (lambda x: x.aminmax(dim=1)[0], VECTOR),
    (lambda x: torch.max(x, x.flip(1)), VECTOR), (lambda x: torch.minimum(x, torch.arange(6.0)), VECTOR),
    (lambda x: x.sum(), VECTOR), (lambda x: x.sum((1, 3)), IMAGE), (lambda x: x.mean(-1, keepdim=True), IMAGE),
    (lambda x: x.mean((-2, -1)), IMAGE), (lambda x: x.logsumexp((1, 2)), IMAGE), (lambda x: x.prod(1), VECTOR),
    (lambda x: x.var(1), VECTOR), (lambda x: x.var((1, 2), unbiased=False), IMAGE), (lambda x: x.std(1, correction=2), VECTOR),
    (lambda x: x.norm(dim=1), VECTOR), (lambda x: torch.linalg.norm(x, dim=1), VECTOR), (lambda x: x.norm(p=1, dim=1), VECTOR),
    (lambda x: x.norm(p=3, dim=1), VECTOR), (lambda x: torch.linalg.vector_norm(x, torch.inf, 1), VECTOR),
    (lambda x: F.normalize(x, dim=1), VECTOR), (lambda x: torch.hypot(x, x.flip(1)), VECTOR), (lambda x: torch.logaddexp(x, -x), VECTOR),
    (lambda x: x**2, VECTOR), (lambda x: x**5, VECTOR), (lambda x: x.abs() ** 1.7, VECTOR), (lambda x: x**-2, VECTOR),
    (lambda x: 2**x, VECTOR), (lambda x: x**0, VECTOR), (lambda x: x.square() - x.pow(1), VECTOR), (lambda x: 1 - x, VECTOR),
    (lambda x: 1 / x, VECTOR), (lambda x: x / torch.arange(1.0, 7), VECTOR), (lambda x: x / (1 + x * x), VECTOR),
    (lambda x: torch.sub(x, x.sin(), alpha=3), VECTOR), (lambda x: torch.add(x, 2, alpha=3), VECTOR),
    (lambda x: torch.rsub(x, 2), VECTOR), (lambda x: x * torch.arange(6), VECTOR), (lambda x: -x * x.sin(), VECTOR),
    (lambda x: x.clip(-1, 0.5), VECTOR), (lambda x: x.clamp(min=0), VECTOR), (lambda x: x.clamp_max(0.3), VECTOR),
    (lambda x: x.clamp(torch.arange(6.0) - 3, torch.arange(6.0)), VECTOR), (lambda x: torch.lerp(x, x * 2, 0.3), VECTOR),
    (lambda x: torch.addcmul(x, x, x.sin(), value=2), VECTOR), (lambda x: torch.addcdiv(x, x, 2 + x.sin(), value=2), VECTOR),
    (lambda x: torch.outer(x[0], x[0].sin()), VECTOR), (lambda x: torch.dot(x[0], x[0].sin()).reshape(1, 1), VECTOR),
    (lambda x: torch.addmm(torch.ones(3, dtype=x.dtype), x, torch.arange(18.0, dtype=x.dtype).reshape(6, 3), beta=2, alpha=3), VECTOR),
    (lambda x: torch.baddbmm(x, x, x, beta=0.5), (4, 4)), (lambda x: torch.mm(x, x.t()), VECTOR), (lambda x: torch.inner(x, x), VECTOR),
    (lambda x: torch.arange(16.0, dtype=x.dtype).reshape(2, 8) @ x.mT, TOKENS),
    (lambda x: F.interpolate(x, size=5, mode="bicubic"), IMAGE), (lambda x: F.interpolate(x, size=5, mode="area"), IMAGE),
    (lambda x: F.interpolate(x, scale_factor=0.6, mode="bilinear", recompute_scale_factor=False), IMAGE),
    (lambda x: F.interpolate(x, size=5, mode="nearest-exact"), IMAGE), (lambda x: F.interpolate(x, size=7, mode="linear"), LINE),
    (lambda x: F.interpolate(x, size=(3, 9, 5), mode="trilinear"), VOLUME),
    (lambda x: F.scaled_dot_product_attention(x, x.sin(), x.cos(), is_causal=True), TOKENS),
    (lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=torch.eye(5, dtype=torch.bool) | torch.ones(5, 5).tril().bool()), TOKENS),
    (lambda x: F.scaled_dot_product_attention(x, x, x, scale=0.3, attn_mask=torch.arange(25.0, dtype=x.dtype).reshape(5, 5)), TOKENS),
    (lambda x: (x @ x.mT).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1) @ x, TOKENS),
    (lambda x: x.masked_fill(MASK, 2.0), VECTOR), (lambda x: torch.where(MASK, x, x * 3), VECTOR),
    (lambda x: torch.where(MASK, x, 1.5), VECTOR),
    (lambda x: torch.full_like(x, 2) + torch.zeros_like(x) + x.new_ones(6) + x * torch.linspace(0, 1, 6), VECTOR),
    (lambda x: x.expm1() + x.exp2() + x.sinh() - x.cosh() + x.atan() + x.erf() + x.sin() * x.cos(), VECTOR),
    (lambda x: x.detach().clone().contiguous().to(torch.float64), VECTOR), (lambda x: x.square().sum(1).sqrt(), VECTOR),
    (lambda x: x.scatter(1, KEEP[None], x.sin()[:, :3]), VECTOR),
    (lambda x: {"second": x.sin(), "first": (x, None)}, VECTOR),
]  # fmt: skip

POSITIVE = [
    (lambda x: x.sqrt() + x.log() + x.rsqrt() + x.reciprocal(), VECTOR), (lambda x: x.log1p() + x.log2() + x.log10(), VECTOR),
    (lambda x: x**0.5 + x**-0.5 + x**0.3, VECTOR), (lambda x: x.tan(), (1,)), (lambda x: x.tan() / 7, (2,)),
]  # fmt: skip

JUMPS = [
    (lambda x: x.sign(), VECTOR), (lambda x: x.round() + x.floor() - x.ceil() + x.trunc() + x.frac(), VECTOR),
    (lambda x: (x > 0).double() + (x <= x.flip(1)).to(x.dtype), VECTOR), (lambda x: ((x > 0) & ~(x > 1) | (x != x)) * x, VECTOR),
    (lambda x: torch.where(x > 0.1, x, -x), VECTOR), (lambda x: x.masked_fill(x < 0, 0.5), VECTOR), (lambda x: x.argmax(1), VECTOR),
    (lambda x: x.argmin(), VECTOR), (lambda x: x.max(1).indices, VECTOR), (lambda x: F.one_hot(x.argmax(1), 6) * x, VECTOR),
    (lambda x: torch.heaviside(x, torch.tensor(0.5, dtype=x.dtype)), VECTOR), (lambda x: x % 2, VECTOR), (lambda x: x // 2, VECTOR),
    (lambda x: torch.div(x, 2, rounding_mode="trunc"), VECTOR), (lambda x: x.long() * x, VECTOR), (lambda x: x.bool() * x, VECTOR),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer", "shape"), LAYERS, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(LAYERS)])
def test_layer(name, layer, shape):
    agrees(shake(layer.double()).eval(), shape)


@pytest.mark.parametrize(("function", "shape"), FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_function(function, shape):
    agrees(calls(function), shape)


@pytest.mark.parametrize(("function", "shape"), POSITIVE, ids=range(len(POSITIVE)))
def test_function_of_positive_numbers(function, shape):
    agrees(calls(function), shape, positive=True)


@pytest.mark.parametrize(("function", "shape"), JUMPS, ids=range(len(JUMPS)))
def test_operation_with_jumps(function, shape):
    assert "Discontinuous" in agrees(calls(function), shape)
    assert "discontinuous" in {o.status for o in list_operations_torch(calls(function), shape)}


@pytest.mark.parametrize(
    ("function", "shape", "operator", "reason"),
    [
        (lambda x: F.dropout(x), VECTOR, "dropout", "eval"),
        (lambda x: x + torch.rand_like(x), VECTOR, "rand_like", "random"),
        (lambda x: x + torch.randn(6), VECTOR, "randn", "random"),
        (lambda x: F.batch_norm(x.repeat(2, 1), None, None, training=True), VECTOR, "batch_norm", "eval"),
        (lambda x: F.softplus(x, threshold=3), VECTOR, "softplus", "threshold"),
        (lambda x: torch.fft.rfft(x).abs(), VECTOR, "fft_rfft", "complex"),
        (lambda x: torch.cdist(x, x), VECTOR, "cdist", "no rule"),
        (lambda x: F.embedding(x.long(), torch.ones(3, 3)), VECTOR, "embedding", "looks up"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[1], IMAGE, "max_pool2d_with_indices", "positions"),
        (lambda x: x[:, x.argmax(1)], VECTOR, "index", "depend on the input"),
        (lambda x: torch.linalg.matrix_norm(x, 2), IMAGE, "linalg_matrix_norm", "no rule"),
        (lambda x: F.fold(x, (4, 4), 2), (8, 9), "col2im", "overlapping"),
        (lambda x: (x > 0) + (x > 1), VECTOR, "add", "truth"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), TOKENS, "scaled_dot_product_attention", "dropout"),
        (lambda x: x.prod(1), (65,), "prod", "64"),
        (lambda x: torch.einsum("bii->bi", x), (6, 6), "einsum", "einsum"),
    ],
)  # fmt: skip
def test_operations_that_are_refused_by_name(function, shape, operator, reason):
    with pytest.raises(UnsupportedError) as caught:
        from_module(calls(function), shape)
    assert [o.operator for o in caught.value.operations] == [operator]
    assert reason in caught.value.operations[0].reason
    assert [o.status for o in list_operations_torch(calls(function), shape)].count("unsupported") == 1


def test_all_unsupported_operations_are_listed_at_once():
    def function(x):
        a = torch.cdist(x, x)
        return a.sum() + x.sin().cumprod(1) + torch.atan2(x, x)

    with pytest.raises(UnsupportedError) as caught:
        from_module(calls(function), VECTOR)
    assert [o.operator for o in caught.value.operations] == ["cdist", "cumprod", "atan2"]
    listed = list_operations_torch(calls(function), VECTOR)
    assert [o.operator for o in listed] == ["cdist", "sum", "sin", "cumprod", "add", "atan2", "add"]
    assert [o.status for o in listed].count("supported") == 4
    assert listed[2].shape == (1, 6)


def test_a_recurrent_layer_is_refused():
    with pytest.raises(UnsupportedError, match="recurrent"):
        from_module(calls(lambda m, x: m.r(x)[0], r=nn.LSTM(8, 3, batch_first=True)), TOKENS)


def test_division_by_a_constant_zero_is_an_error():
    with pytest.raises(ModelError, match="divides by zero"):
        from_module(calls(lambda x: x / torch.arange(6.0)), VECTOR)


def test_a_mask_that_leaves_nothing_is_refused():
    def function(x):
        return (x @ x.mT).masked_fill(torch.ones(5, 5, dtype=torch.bool), -torch.inf).softmax(-1)

    with pytest.raises(UnsupportedError, match="leaves nothing"):
        from_module(calls(function), TOKENS)


def test_causal_attention_has_no_infinite_constants():
    graph = from_module(calls(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), TOKENS).graph
    for node in graph:
        for value in node.parameters().values():
            assert not hasattr(value, "dtype") or value.dtype.kind != "f" or abs(value).max() < 10


def test_power_average_pooling_has_no_jump():
    kinds = agrees(nn.LPPool2d(2, 2).eval(), IMAGE)
    assert "Discontinuous" not in kinds


def test_constants_are_folded_and_listed_as_folded():
    listed = list_operations_torch(calls(lambda x: x + torch.arange(6).sin()), VECTOR)
    assert [(o.operator, o.status) for o in listed] == [("arange", "folded"), ("sin", "folded"), ("add", "supported")]
