"""What each ATen operation becomes: one table, a file for each family of operations."""

from __future__ import annotations

from lipscope.network.load.torch_ops import (
    activations,
    arithmetic,
    convolution,
    discontinuous,
    normalization,
    pooling,
    products,
    rearrangement,
    reductions,
    shapes,
)
from lipscope.network.load.torch_ops.call import Call, Handlers, Refusal, as_array

__all__ = ["HANDLERS", "RANDOM", "WITHOUT_HANDLER", "Call", "Refusal", "as_array"]

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
    **shapes.HANDLERS,
}
"""Operations by name: `max.dim` for one overload, `max` for all others. `relu_` is looked up as `relu`."""

RANDOM = frozenset(shapes.RANDOM)
"""Operations whose value is random even if no operand depends on the input."""

_RECURRENT = "recurrent layers are not understood; unroll it, or bound one step of it"
_COMPLEX = "complex numbers are not understood; write the transform as a real matrix"
_SHAPE = "the shape of its result depends on the input; export the part of the model before it"

WITHOUT_HANDLER: dict[str, str] = {
    **dict.fromkeys(("rnn_tanh", "rnn_relu", "lstm", "gru"), _RECURRENT),
    **dict.fromkeys(
        ("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_rfft2", "fft_irfft2", "view_as_complex",
         "complex", "stft", "istft"), _COMPLEX),
    **dict.fromkeys(("nonzero", "unique_consecutive", "_unique2", "masked_scatter"), _SHAPE),
    "embedding": "it looks up integers, which have no Lipschitz constant; analyse the part of the model behind it",
    "embedding_bag": "it looks up integers, which have no Lipschitz constant; analyse the part of the model behind it",
    "cond": "its branch depends on the input; export the branch that is wanted",
    "item": "a number taken from the input steers the program; export the branch that is wanted",
    "_local_scalar_dense": "a number taken from the input steers the program; export the branch that is wanted",
}  # fmt: skip
"""Why some operations have no handler."""
