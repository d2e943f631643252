"""What each ONNX operator becomes: one table, a file for each family of operators."""

from __future__ import annotations

from lipscope.network.load.onnx_ops import (
    activations,
    arithmetic,
    convolution,
    discontinuous,
    normalization,
    pooling,
    products,
    rearrangement,
    reductions,
    resize,
    shapes,
)
from lipscope.network.load.onnx_ops.call import Call, Handlers, Refusal

__all__ = ["HANDLERS", "WITHOUT_HANDLER", "Call", "Refusal"]

HANDLERS: Handlers = {
    **activations.HANDLERS,
    **arithmetic.HANDLERS,
    **convolution.HANDLERS,
    **discontinuous.HANDLERS,
    **normalization.HANDLERS,
    **pooling.HANDLERS,
    **products.HANDLERS,
    **rearrangement.HANDLERS,
    **reductions.HANDLERS,
    **resize.HANDLERS,
    **shapes.HANDLERS,
}
"""Standard operators by name."""

_RECURRENT = "recurrent layers are not understood; unroll it before the export, or bound one step of it"
_LOOP = "loops are not understood; unroll it before the export"
_QUANTISED = "quantisation rounds the values, which is not Lipschitz; take the model before quantisation"
_RANDOM = "its value is random, so the model is no function; export it in inference mode"
_COUNT = "the shape or order of its result depends on the input; export the part of the model before it"

WITHOUT_HANDLER: dict[str, str] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), _LOOP),
    **dict.fromkeys(
        ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
         "DequantizeLinear"), _QUANTISED),
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"), _RANDOM),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique", "Compress"), _COUNT),
}  # fmt: skip
"""Why some operators have no handler."""
