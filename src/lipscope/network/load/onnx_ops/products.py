"""Matrix products."""

from __future__ import annotations

import numpy as np

from lipscope.network.load.lowering import Operand, Ref, stored
from lipscope.network.load.onnx_ops.call import Call, Handlers, Refusal
from lipscope.network.nodes import Array


def _matmul(call: Call) -> Operand:
    return call.lowering.matmul(call.operand(0), call.operand(1))


def _flipped(call: Call, x: Operand) -> Operand:
    if isinstance(x, Ref):
        return call.lowering.transpose(x, (1, 0))
    return np.swapaxes(x, 0, 1)


def _gemm(call: Call) -> Operand:
    a, b, lowering = call.operand(0), call.operand(1), call.lowering
    alpha, beta = float(call.attribute("alpha", 1.0)), float(call.attribute("beta", 1.0))
    a = _flipped(call, a) if call.attribute("transA", 0) else a
    b = _flipped(call, b) if call.attribute("transB", 0) else b
    c = call.operand(2) if call.has(2) and beta != 0.0 else None
    if alpha == beta == 1.0 and isinstance(a, Ref) and not isinstance(b, Ref) and not isinstance(c, Ref):
        return lowering.dense(a, np.swapaxes(b, 0, 1), c)
    y: Operand = lowering.matmul(a, b) if isinstance(a, Ref) or isinstance(b, Ref) else np.matmul(a, b)
    y = _scaled(call, y, alpha)
    if c is None:
        return y
    return lowering.plus(y, _scaled(call, c, beta))


def _scaled(call: Call, x: Operand, factor: float) -> Operand:
    if factor == 1.0:
        return x
    if isinstance(x, Ref):
        return call.lowering.times(x, np.asarray(factor, dtype=np.float64))
    return stored(x).astype(np.float64) * factor


def _cum_sum(call: Call) -> Operand:
    x = call.x
    axis = int(np.reshape(call.constant(1, "axis"), ())) % len(x.shape)
    size = x.shape[axis]
    matrix = np.tri(size, k=-1 if call.attribute("exclusive", 0) else 0)
    if call.attribute("reverse", 0):
        matrix = matrix[::-1, ::-1].copy()
    return call.lowering.dense(x, matrix, None, axis)


def _lrn(call: Call) -> Operand:
    """X / (bias + alpha/size sum of squares of neighbouring channels) ** beta, the power as exp(beta log)."""
    x, lowering = call.x, call.lowering
    size, alpha = int(call.attribute("size")), float(call.attribute("alpha", 1e-4))
    bias, beta = float(call.attribute("bias", 1.0)), float(call.attribute("beta", 0.75))
    if bias <= 0 or alpha < 0:
        raise Refusal(f"expected bias > 0 and alpha >= 0, got {bias} and {alpha}")
    position = np.arange(x.shape[1])
    ahead = position[None, :] - position[:, None]
    band = (ahead >= -((size - 1) // 2)) & (ahead <= size // 2)
    squares = lowering.dense(lowering.elementwise(x, "square"), band.astype(np.float64), None, 1)
    scaled = lowering.times(lowering.over(squares, np.asarray(float(size))), np.asarray(alpha))
    logarithm = lowering.elementwise(lowering.plus(scaled, np.asarray(bias)), "log")
    return lowering.times(x, lowering.elementwise(lowering.times(logarithm, np.asarray(-beta)), "exp"))


def _einsum(call: Call) -> Operand:
    left, arrow, target = call.attribute("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow:
        letters = "".join(terms)
        target = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    operands = call.given()
    plain = all(len(set(t)) == len(t) and "." not in t for t in (*terms, target))
    if not plain or len(terms) not in (1, 2) or len(terms) != len(operands):
        raise Refusal(f"einsum {left!r} -> {target!r} is not understood; write it with MatMul, Transpose and ReduceSum")
    if len(terms) == 1:
        y, kept = _summed(call, operands[0], terms[0], target)
        return _ordered(call, y, kept, target)
    return _contracted(call, operands, terms, target)


def _summed(call: Call, x: Operand, term: str, kept: str) -> tuple[Operand, str]:
    """X without the axes whose letters occur nowhere else."""
    axes = [i for i, letter in enumerate(term) if letter not in kept]
    if not axes:
        return x, term
    rest = "".join(letter for letter in term if letter in kept)
    return (call.lowering.sum(x, axes, False) if isinstance(x, Ref) else np.sum(x, axis=tuple(axes))), rest


def _ordered(call: Call, x: Operand, term: str, target: str) -> Operand:
    order = [term.index(letter) for letter in target]
    return call.lowering.transpose(x, order) if isinstance(x, Ref) else np.transpose(x, order)


def _contracted(call: Call, operands: list[Operand], terms: list[str], target: str) -> Operand:
    a, first = _summed(call, operands[0], terms[0], terms[1] + target)
    b, second = _summed(call, operands[1], terms[1], terms[0] + target)
    batch = [c for c in first if c in second and c in target]
    inner = [c for c in first if c in second and c not in target]
    rows, columns = [c for c in first if c not in second], [c for c in second if c not in first]
    length = dict(zip(first, a.shape, strict=True)) | dict(zip(second, b.shape, strict=True))

    def size(letters: list[str]) -> int:
        return int(np.prod([length[c] for c in letters], dtype=np.int64))

    a = _ordered(call, a, first, "".join(batch + rows + inner))
    b = _ordered(call, b, second, "".join(batch + inner + columns))
    lead = [length[c] for c in batch]
    a = _reshaped(call, a, [*lead, size(rows), size(inner)])
    b = _reshaped(call, b, [*lead, size(inner), size(columns)])
    y = call.lowering.matmul(a, b)
    letters = batch + rows + columns
    return _ordered(call, call.lowering.reshape(y, [length[c] for c in letters]), "".join(letters), target)


def _reshaped(call: Call, x: Operand, shape: list[int]) -> Operand:
    if isinstance(x, Ref):
        return call.lowering.reshape(x, shape)
    plain: Array = np.reshape(x, shape)
    return plain


HANDLERS: Handlers = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "CumSum": _cum_sum,
    "LRN": _lrn,
    "Einsum": _einsum,
}
