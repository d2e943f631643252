"""Shapes, new constants, identities, and interpolation."""

from __future__ import annotations

from typing import Any

import torch

from lipscope.network.load.lowering import Ref
from lipscope.network.load.torch_ops.call import Call, Handler, Handlers, Refusal
from lipscope.network.load.torch_ops.normalization import TRAINING


def _same(call: Call) -> Ref:
    return call.x


def _dropout(call: Call) -> Ref:
    if call["train"] and call["p"]:
        raise Refusal(TRAINING.replace("whole batch or on chance", "chance"))
    return call.x


def _size(call: Call) -> int:
    return call.x.shape[int(call["dim"])]


def _count(call: Call) -> int:
    return torch.Size(call.x.shape).numel()


def _filled(call: Call) -> Any:
    """A constant that only has the shape of the first argument."""
    return call.on(torch.zeros(call.x.shape, dtype=torch.float64))


def _nothing(call: Call) -> None:
    return None


def _random(call: Call) -> Ref:
    raise Refusal("its value is random, so the model is no function; remove it, or switch it off in eval mode")


# ------------------------------------------------------------------------------------------------ interpolation


def _along(call: Call, axis: int, rank: int, probe: torch.Tensor) -> torch.Tensor:
    """The interpolation of one spatial axis alone: the others have length 1 in `probe`, and keep it."""
    arguments = dict(call.arguments)
    if arguments.get("output_size") is not None:
        sizes = [1] * rank
        sizes[axis] = int(arguments["output_size"][axis])
        arguments["output_size"] = sizes
    if arguments.get("scale_factors") is not None:
        scales = [1.0] * rank
        scales[axis] = float(arguments["scale_factors"][axis])
        arguments["scale_factors"] = scales
    for key, spatial in (("scales", 0), ("scales_d", rank - 3), ("scales_h", rank - 2), ("scales_w", rank - 1)):
        if key in arguments and spatial != axis:
            arguments[key] = None
    found: torch.Tensor = call.replaced(**arguments).on(probe)
    return found


def _interpolated(copies: bool) -> Handler:
    """Separable interpolation: copies of entries, or one matrix an axis, read off torch's own result."""

    def handle(call: Call) -> Ref:
        x = call.x
        rank = len(x.shape) - 2
        chosen: list[Any] = [None, None]
        for axis, size in enumerate(x.shape[2:]):
            ones = [1] * rank
            ones[axis] = size
            if copies:
                probe = torch.arange(size, dtype=torch.float64).reshape(1, 1, *ones)
                chosen.append(_along(call, axis, rank, probe).reshape(-1).long().numpy())
            else:
                probe = torch.eye(size, dtype=torch.float64).reshape(size, 1, *ones)
                chosen.append(_along(call, axis, rank, probe).reshape(size, -1).T.contiguous().numpy())
        return call.lowering.resize_nearest(x, chosen) if copies else call.lowering.resize_linear(x, chosen)

    return handle


IDENTITIES = (
    "clone", "contiguous", "detach", "alias", "lift_fresh_copy", "lift_fresh", "lift", "positive", "view_as_real_copy",
    "requires_grad", "resolve_conj", "resolve_neg", "conj", "real",
)  # fmt: skip
LIKE = (
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "new_tensor",
)
RANDOM = (
    "rand_like", "randn_like", "randint_like", "bernoulli", "rand", "randn", "randint", "randperm", "normal", "uniform",
    "multinomial", "poisson", "native_dropout", "exponential", "log_normal", "geometric", "cauchy", "random",
)  # fmt: skip

HANDLERS: Handlers = {
    **dict.fromkeys(IDENTITIES, _same),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(LIKE, _filled),
    **dict.fromkeys(RANDOM, _random),
    **dict.fromkeys(("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "_assert_async"), _nothing),
    "sym_size": _size,
    "sym_numel": _count,
    **{f"{prefix}{d}d": _interpolated(True) for prefix in ("upsample_nearest", "_upsample_nearest_exact") for d in (1, 2, 3)},
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"), _interpolated(False)),
}  # fmt: skip
