"""Tensors under construction, and what moves their entries without changing them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from lipscope.claims.errors import ModelError
from lipscope.network import nodes as n
from lipscope.network.graph import Graph, GraphBuilder
from lipscope.network.nodes import Array, Shape


@dataclass(frozen=True)
class Ref:
    """A tensor of the graph under construction: its node and its shape for one example (batch axis included)."""

    index: int
    shape: Shape


Operand = Ref | Array


def stored(array: Array) -> Array:
    """A constant in the dtype in which graphs keep it: float32 and float64 as they are, the rest widened exactly."""
    values = np.asarray(array)
    if values.dtype in (np.float32, np.float64):
        return values
    if values.dtype.kind in "biu":
        wide = values.astype(np.float64)
        if values.dtype.kind != "b" and (wide.astype(values.dtype) != values).any():
            raise ModelError("expected integer constants that float64 holds exactly, got larger ones")
        return wide
    return values.astype(np.float32)  # float16 and bfloat16: exact


class Rearranging(GraphBuilder):
    """Puts nodes into a graph, reads its inputs, and rearranges."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = ""

    # ------------------------------------------------------------------------------------------------ plumbing

    def put(self, kind: type[n.Node], inputs: Sequence[Ref], shape: Sequence[int], **fields: object) -> Ref:
        """Add a node of `kind` named after the current layer."""
        node = kind(
            inputs=tuple(x.index for x in inputs),
            shape=tuple(map(int, shape)),
            name=self.layer,
            **fields,
        )
        return Ref(self.add(node), node.shape)

    def inputs(self, shapes: Sequence[Shape]) -> list[Ref]:
        """The graph's input, once, cut into the model's inputs of the given shapes (with their batch axes)."""
        self.layer = "input"
        if len(shapes) == 1:
            return [self.put(n.Input, [], shapes[0])]
        whole = self.put(n.Input, [], (sum(prod(s) for s in shapes),))
        found, start = [], 0
        for shape in shapes:
            part = self.slice(whole, 0, start, start + prod(shape))
            found.append(self.reshape(part, shape))
            start += prod(shape)
        return found

    def finish(
        self, outputs: Sequence[Operand], input_shapes: Sequence[Shape], output_shapes: Sequence[Shape], source: str
    ) -> Graph:
        """The graph of the outputs, several of them flattened and concatenated in order."""
        self.layer = "output"
        refs = [self.as_ref(x) for x in outputs]
        if len(refs) > 1:
            refs = [self.concat([self.reshape(x, (prod(x.shape),)) for x in refs], 0)]
        return self.build(refs[0].index, input_shapes, output_shapes, source)

    def as_ref(self, x: Operand) -> Ref:
        """`x` as a tensor of the graph; an array becomes a `Constant`."""
        return x if isinstance(x, Ref) else self.put(n.Constant, [], np.shape(x), value=stored(x))

    def expand(self, x: Ref, shape: Sequence[int]) -> Ref:
        """`x` broadcast to `shape`; -1 keeps a length."""
        full = [x.shape[i - len(shape)] if s == -1 else s for i, s in enumerate(shape)]
        target = np.broadcast_shapes(x.shape, tuple(full))
        return x if target == x.shape else self.put(n.Expand, [x], target)

    def reshape(self, x: Ref, shape: Sequence[int]) -> Ref:
        """Row-major reshape; one entry may be -1."""
        known = prod(s for s in shape if s != -1)
        full = tuple(prod(x.shape) // max(known, 1) if s == -1 else int(s) for s in shape)
        if prod(full) != prod(x.shape):
            raise ModelError(
                f"cannot reshape {list(x.shape)} to {list(shape)} at layer {self.layer!r}; if the model was exported "
                "with a fixed batch size, export it with batch size 1 or a dynamic batch axis"
            )
        return x if full == x.shape else self.put(n.Reshape, [x], full)

    def transpose(self, x: Ref, permutation: Sequence[int]) -> Ref:
        """Axes permuted."""
        order = tuple(int(p) % len(x.shape) for p in permutation)
        if order == tuple(range(len(order))):
            return x
        return self.put(n.Transpose, [x], [x.shape[p] for p in order], permutation=order)

    def slice(self, x: Ref, axis: int, start: int, stop: int, step: int = 1) -> Ref:
        """`x[start:stop:step]` along one axis, with Python's meaning of negative numbers, any step but 0."""
        axis %= len(x.shape)
        taken = range(x.shape[axis])[start:stop:step]
        if len(taken) == x.shape[axis] and step == 1:
            return x
        if step < 0 or not len(taken):
            return self.take(x, np.array(taken, dtype=np.int64), axis)
        ranges = [(0, s, 1) for s in x.shape]
        ranges[axis] = (taken.start, taken[-1] + 1, step)
        shape = [len(taken) if i == axis else s for i, s in enumerate(x.shape)]
        return self.put(n.Slice, [x], shape, ranges=tuple(ranges))

    def take(self, x: Ref, indices: Array, axis: int) -> Ref:
        """`numpy.take` along one axis; indices of any shape, negative ones counted from the end."""
        axis %= len(x.shape)
        flat = np.asarray(indices, dtype=np.int64).reshape(-1)
        flat = np.where(flat < 0, flat + x.shape[axis], flat)
        if flat.size and not (0 <= flat.min() and flat.max() < x.shape[axis]):
            raise ModelError(f"an index is outside 0..{x.shape[axis] - 1} at layer {self.layer!r}")
        y = self.put(n.Gather, [x], (*x.shape[:axis], flat.size, *x.shape[axis + 1 :]), indices=flat, axis=axis)
        return self.reshape(y, (*x.shape[:axis], *np.shape(indices), *x.shape[axis + 1 :]))

    def pad(self, x: Ref, pads: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0) -> Ref:
        """(low, high) for every axis; negative numbers crop. Modes as `numpy.pad`: constant, reflect, edge, wrap."""
        for axis, (low, high) in enumerate(pads):
            if low < 0 or high < 0:
                x = self.slice(x, axis, max(-low, 0), x.shape[axis] - max(-high, 0))
        widths = tuple((max(int(low), 0), max(int(high), 0)) for low, high in pads)
        if not any(map(any, widths)):
            return x
        shape = [s + low + high for s, (low, high) in zip(x.shape, widths, strict=True)]
        return self.put(n.Pad, [x], shape, pads=widths, mode=mode, value=float(value))

    def _cropped(self, x: Ref, padding: Sequence[tuple[int, int]]) -> tuple[Ref, list[tuple[int, int]]]:
        """Negative convolution padding as a crop."""
        if all(p >= 0 for pair in padding for p in pair):
            return x, list(padding)
        x = self.pad(x, [(0, 0), (0, 0), *((min(lo, 0), min(hi, 0)) for lo, hi in padding)])
        return x, [(max(lo, 0), max(hi, 0)) for lo, hi in padding]

    def concat(self, operands: Sequence[Operand], axis: int) -> Ref:
        """The operands joined along an axis."""
        refs = [self.as_ref(x) for x in operands]
        refs = [x for x in refs if prod(x.shape)] or refs[:1]
        if len(refs) == 1:
            return refs[0]
        axis %= len(refs[0].shape)
        shape = list(refs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in refs)
        return self.put(n.Concat, refs, shape, axis=axis)

    def stack(self, operands: Sequence[Operand], axis: int) -> Ref:
        """The operands joined along a new axis."""
        refs = [self.as_ref(x) for x in operands]
        axis %= len(refs[0].shape) + 1
        return self.concat([self.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in refs], axis)

    def split(self, x: Ref, sizes: Sequence[int], axis: int) -> list[Ref]:
        """The pieces of the given lengths along an axis."""
        ends = np.cumsum([0, *sizes])
        return [self.slice(x, axis, int(a), int(b)) for a, b in itertools.pairwise(ends)]

    def resize_nearest(self, x: Ref, indices: Sequence[Array | None]) -> Ref:
        """Copies along each axis: `indices[a]` says which input position each output position copies (None: untouched)."""
        for axis, chosen in enumerate(indices):
            if chosen is not None:
                x = self.take(x, chosen, axis)
        return x
