"""Linear layers and products of tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lipscope.network.load.lowering import Operand, Ref
from lipscope.network.load.torch_ops.call import Call, Handlers, Refusal, number
from lipscope.network.load.torch_ops.normalization import softmax
from lipscope.network.nodes import Array


def _linear(call: Call) -> Ref:
    lowering, weight = call.lowering, call.operand("weight")
    bias = None if call["bias"] is None else call.operand("bias")
    if isinstance(weight, Ref):
        y = lowering.matmul(call.ref("input"), _transposed(call, weight))
        return y if bias is None else lowering.plus(y, bias)
    x = call.ref("input")
    if weight.ndim == 1:
        y = lowering.matmul(x, weight)
        return y if bias is None else lowering.plus(y, bias)
    if isinstance(bias, Ref):
        return lowering.plus(lowering.dense(x, weight), bias)
    return lowering.dense(x, weight, bias)


def _transposed(call: Call, x: Ref) -> Ref:
    axes = list(range(len(x.shape)))
    axes[-2:] = axes[:-3:-1]
    return call.lowering.transpose(x, axes)


def _product(first: str, second: str) -> Any:
    def handle(call: Call) -> Ref:
        return call.lowering.matmul(call.operand(first), call.operand(second))

    return handle


def _sum_with_product(first: str, second: str) -> Any:
    """`beta * self + alpha * (first @ second)`"""

    def handle(call: Call) -> Operand:
        lowering = call.lowering
        a, b, own = call.operand(first), call.operand(second), call.operand("self")
        alpha, beta = float(call["alpha"]), float(call["beta"])
        if not isinstance(a, Ref) and not isinstance(b, Ref):
            product: Operand = np.matmul(a, b)
        else:
            product = lowering.matmul(a, b)
        product = _scaled(call, product, alpha)
        return product if beta == 0 else lowering.plus(_scaled(call, own, beta), product)

    return handle


def _scaled(call: Call, x: Operand, factor: float) -> Operand:
    if factor == 1:
        return x
    return call.lowering.times(x, number(factor)) if isinstance(x, Ref) else np.multiply(x, factor)


def _outer(call: Call) -> Ref:
    lowering = call.lowering
    a, b = call.ref("self"), call.ref("vec2")
    return lowering.times(lowering.reshape(a, (*a.shape, 1)), lowering.reshape(b, (1, *b.shape)))


def _inner(call: Call) -> Ref:
    lowering, b = call.lowering, call.operand("other")
    if len(np.shape(b) if not isinstance(b, Ref) else b.shape) < 2:
        return lowering.matmul(call.operand("self"), b)
    flipped = _transposed(call, b) if isinstance(b, Ref) else np.swapaxes(b, -1, -2)
    return lowering.matmul(call.operand("self"), flipped)


def _einsum(call: Call) -> Ref:
    """One or two operands, every letter at most once in each: transposes, sums, one matrix product, one transpose."""
    operands = [call.converted(t) for t in call["tensors"]]
    equation = call["equation"].replace(" ", "")
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    if not arrow:
        every = "".join(letters)
        result = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    if "." in equation or len(operands) > 2 or any(len(set(t)) < len(t) for t in (*letters, result)):
        raise Refusal(
            "only einsum of one or two tensors without ellipsis and repeated letters is understood; use matmul"
        )
    if len(operands) == 1:
        (only,) = operands
        return _arranged(call, call.lowering.as_ref(only), letters[0], result)
    return _contracted(call, operands, letters, result)


def _arranged(call: Call, x: Ref, letters: str, result: str) -> Ref:
    """Letters that are not in the result summed, the others brought into its order."""
    gone = [i for i, c in enumerate(letters) if c not in result]
    if gone:
        x = call.lowering.sum(x, gone, False)
        letters = "".join(c for c in letters if c in result)
    return call.lowering.transpose(x, [letters.index(c) for c in result])


def _contracted(call: Call, operands: list[Operand], letters: list[str], result: str) -> Ref:
    lowering = call.lowering
    left, right = letters
    batch = [c for c in left if c in right and c in result]
    summed = [c for c in left if c in right and c not in result]
    rows = [c for c in left if c not in right and c in result]
    columns = [c for c in right if c not in left and c in result]
    sizes = {c: s for t, x in zip(letters, operands, strict=True) for c, s in zip(t, x.shape, strict=True)}

    def matrix(x: Operand, term: str, first: list[str], second: list[str]) -> Operand:
        """The operand as a stack of matrices."""
        wanted = [*batch, *first, *second]
        shape = [*(sizes[c] for c in batch), math.prod(sizes[c] for c in first), math.prod(sizes[c] for c in second)]
        if isinstance(x, Ref):
            return lowering.reshape(_arranged(call, x, term, "".join(wanted)), shape)
        gone = tuple(i for i, c in enumerate(term) if c not in wanted)
        kept = [c for c in term if c in wanted]
        summed_up: Array = np.sum(x, axis=gone)
        return summed_up.transpose([kept.index(c) for c in wanted]).reshape(shape)

    a, b = matrix(operands[0], left, rows, summed), matrix(operands[1], right, summed, columns)
    y = lowering.matmul(a, b)
    order = [*batch, *rows, *columns]
    y = lowering.reshape(y, [sizes[c] for c in order])
    return lowering.transpose(y, [order.index(c) for c in result])


def _bilinear(call: Call) -> Ref:
    lowering = call.lowering
    weight, a, b = call.array("weight"), call.ref("input1"), call.ref("input2")
    out, m, n = weight.shape
    products = lowering.times(lowering.reshape(a, (*a.shape, 1)), lowering.reshape(b, (*b.shape[:-1], 1, n)))
    flat = lowering.reshape(products, (*a.shape[:-1], m * n))
    return lowering.dense(flat, weight.reshape(out, m * n), call.maybe_array("bias"))


def _attention(call: Call) -> Ref:
    """`softmax(q k^T scale + mask) v`"""
    lowering = call.lowering
    if call["dropout_p"]:
        raise Refusal("its dropout makes the value random; call model.eval(), or pass dropout_p=0 outside training")
    query, key, value = call.ref("query"), call.operand("key"), call.operand("value")
    if call["enable_gqa"]:
        key, value = (_repeated_heads(call, x, query.shape[-3]) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if call["scale"] is None else float(call["scale"])
    flipped = _transposed(call, key) if isinstance(key, Ref) else np.swapaxes(key, -1, -2)
    scores = lowering.times(lowering.matmul(query, flipped), number(scale))
    rows, columns = scores.shape[-2:]
    if call["is_causal"]:
        allowed = np.tril(np.ones((rows, columns), dtype=bool))
        scores = lowering.plus(scores, np.where(allowed, 0.0, -np.inf))
    if call["attn_mask"] is not None:
        mask = call.operand("attn_mask")
        if not isinstance(mask, Ref) and mask.dtype == bool:
            mask = np.where(mask, 0.0, -np.inf)
        scores = lowering.plus(scores, mask)
    return lowering.matmul(softmax(lowering, scores, -1), value)


def _repeated_heads(call: Call, x: Operand, heads: int) -> Ref:
    ref = call.lowering.as_ref(x)
    indices = np.repeat(np.arange(ref.shape[-3]), heads // ref.shape[-3])
    return call.lowering.take(ref, indices, -3)


HANDLERS: Handlers = {
    "linear": _linear,
    "matmul": _product("self", "other"),
    "mm": _product("self", "mat2"),
    "bmm": _product("self", "mat2"),
    "mv": _product("self", "vec"),
    "dot": _product("self", "tensor"),
    "vdot": _product("self", "other"),
    "inner": _inner,
    "outer": _outer,
    "addmm": _sum_with_product("mat1", "mat2"),
    "addmv": _sum_with_product("mat", "vec"),
    "baddbmm": _sum_with_product("batch1", "batch2"),
    "einsum": _einsum,
    "bilinear": _bilinear,
    "scaled_dot_product_attention": _attention,
}
