"""Does the graph compute what the source model computes? Evidence from inputs of several sizes, before any bound.

The error is relative to the largest output of the sample. It may be 1e-10 for a source in double precision and 1e-5 for one
in float32. A source may be ill-conditioned: then its own roundings show as larger errors at large inputs. That is
measured, not assumed: the graph is evaluated again with every node's value disturbed by one rounding of the source's
precision (relative to the value's largest entry, as errors of long sums are), and an error is accepted beyond the
tolerance only up to 16 times what these disturbances do to the output. If it is above `CEILING` even then, the sample says
nothing and does not count. A graph that is wrong by more than the source's own roundings is refused by any sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lipscope.claims.errors import ModelError
from lipscope.network.graph import Graph
from lipscope.network.load.model import SourceModel
from lipscope.network.nodes import Array, Elementwise, Node
from lipscope.rules.questions import evaluate

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
"""The error relative to the largest output that needs no explanation."""

ROUNDING = {"float64": 2.0**-53, "float32": 2.0**-24}
LARGEST = {"float64": float(np.finfo(np.float64).max), "float32": float(np.finfo(np.float32).max)}
CEILING = {"float64": 1e-6, "float32": 1e-3}
"""The error, relative to the largest output, above which a sample that roundings explain does not count as agreement."""

TRIALS = 4
"""How many disturbed evaluations stand for the source's roundings."""

EXCUSE = 16.0
"""How many times the effect of the disturbances an error may be: a layer has more than one rounding."""

SAMPLES = 8
"""How many inputs are compared."""

Reals = NDArray[np.float64]
Pair = tuple[Array, Array]


@dataclass(frozen=True)
class _Sample:
    name: str
    x: Reals


def check_agreement(
    source: SourceModel, graph: Graph, shift: Reals | float = 0.0, scale: Reals | float = 1.0
) -> list[Pair]:
    """The inputs and outputs of the source on which the graph agrees with it, as float64 vectors.

    Args:
        source: the model as it was read.
        graph: its graph, patterns recognised.
        shift: what the network subtracts from its input first; with `scale` it says where inputs lie.
        scale: what it divides by then; both broadcast to the shape of the graph's input.

    Raises:
        ModelError: the two differ, the source is random or keeps a state, it mixes the examples of a batch, or fewer than
            two inputs give finite outputs.
    """
    samples = [_placed(s, graph, shift, scale, source.dtype) for s in _samples(graph.input_size)]
    first = _run(source, samples[0].x)
    _deterministic(source, first, _run(source, samples[0].x))
    pairs: list[Pair] = []
    problems: list[str] = []
    for sample in samples:
        wanted = _run(source, sample.x)
        if _compared(source, graph, sample, wanted):
            pairs.append((sample.x, wanted))
        else:
            problems.append(sample.name)
    _deterministic(source, first, _run(source, samples[0].x))  # a state may have changed on the way
    if len(pairs) < 2:
        raise ModelError(
            f"expected finite outputs for at least two of {len(samples)} inputs, got {len(pairs)} (not finite or undecided: "
            f"{', '.join(problems)}); check the input shape and whether the model needs inputs of a certain range"
        )
    if source.batches:
        _separable(source, samples[0].x, samples[1].x)
    return pairs


def _samples(size: int) -> list[_Sample]:
    """Deterministic inputs: random ones of several sizes, positive ones as data are, and zero."""
    generator = np.random.default_rng(20240607)
    normal = [generator.standard_normal(size) for _ in range(5)]
    uniform = [generator.random(size) for _ in range(2)]
    return [
        _Sample("random", normal[0]),
        _Sample("random", normal[1]),
        _Sample("between 0 and 1", uniform[0]),
        _Sample("between 0 and 1", uniform[1]),
        _Sample("zero", np.zeros(size)),
        _Sample("small (1e-3)", 1e-3 * normal[2]),
        _Sample("large (10)", 10 * normal[3]),
        _Sample("large (100)", 100 * normal[4]),
    ]


def _placed(sample: _Sample, graph: Graph, shift: Reals | float, scale: Reals | float, dtype: str) -> _Sample:
    """The sample in raw units, in numbers that the source's precision holds."""
    x = (sample.x.reshape(graph.nodes[0].shape) * scale + shift).reshape(-1)
    return replace(sample, x=x.astype(dtype).astype(np.float64))


def _run(source: SourceModel, x: Reals) -> Reals:
    """The source's outputs, flattened and joined."""
    return np.concatenate([y.reshape(-1) for y in _outputs(source, [x])])


def _outputs(source: SourceModel, examples: Sequence[Reals]) -> list[Reals]:
    """The source's outputs for a batch of vectors."""
    inputs, start = [], 0
    for shape in source.run_shapes:
        size = int(np.prod(shape, dtype=np.int64))
        inputs.append(np.concatenate([x[start : start + size].reshape(shape) for x in examples], axis=0))
        start += size
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(y, dtype=np.float64) for y in source.run(inputs)]
    except Exception as error:
        raise ModelError(
            f"the model cannot be evaluated on inputs of shape {[list(np.shape(x)) for x in inputs]}: {type(error).__name__}: "
            f"{error}; check the input shape"
        ) from error


# --------------------------------------------------------------------------------------------------- comparison


def _compared(source: SourceModel, graph: Graph, sample: _Sample, wanted: Reals) -> bool:
    """Whether the sample shows agreement; False if nothing can be said (not finite on both sides, or hidden by roundings)."""
    found, largest = _evaluated(graph, sample.x)
    if found.shape != wanted.shape:
        raise ModelError(
            f"expected {wanted.size} outputs, as the source gives, got {found.size} from the graph; please report the model"
        )
    finite = np.isfinite(wanted)
    if not finite.all():
        if np.array_equal(finite, np.isfinite(found)) or largest > LARGEST[source.dtype]:
            return False
        raise _difference(
            sample, "the source is not finite where the graph is", int(np.flatnonzero(~finite)[0]), source
        )
    if not np.isfinite(found).all():
        raise _difference(
            sample, "the graph is not finite where the source is", int(np.flatnonzero(~np.isfinite(found))[0]), source
        )
    scale = float(np.abs(wanted).max(initial=0.0))
    error = np.abs(found - wanted)
    if any(_is_softplus(node) for node in graph):
        error = np.minimum(error, np.abs(_evaluated(graph, sample.x, linearised=True)[0] - wanted))
    worst = int(error.argmax()) if error.size else 0
    if error.max(initial=0.0) <= TOLERANCE[source.dtype] * scale:
        return True
    shaken = _disturbance(graph, sample.x, found, source.dtype)
    if error[worst] <= EXCUSE * shaken:
        return bool(error[worst] <= CEILING[source.dtype] * scale)  # beyond it, or at a jump, roundings hide everything
    raise _difference(
        sample,
        f"the error is {float(error[worst]):.3g}, {_ratio(error[worst], scale)} of the largest output",
        worst,
        source,
    )


def _ratio(error: float, scale: float) -> str:
    return f"{error / scale:.3g}" if scale else "infinitely much"


def _difference(sample: _Sample, what: str, output: int, source: SourceModel) -> ModelError:
    return ModelError(
        f"expected the graph to compute what the model computes ({TOLERANCE[source.dtype]:g} of the largest output), got a "
        f"difference on an input that is {sample.name}: {what}, at output {output}. Nothing is claimed of this model. If it "
        "writes into its own tensors, keeps a state or uses operations whose meaning changed between versions, rewrite "
        "these; otherwise please report it."
    )


def _disturbance(graph: Graph, x: Reals, undisturbed: Reals, dtype: str) -> float:
    """The largest effect on the output of one rounding at every node."""
    generator = torch.Generator().manual_seed(1)
    found = [_evaluated(graph, x, ROUNDING[dtype], generator)[0] for _ in range(TRIALS)]
    with np.errstate(all="ignore"):
        return float(max(np.nan_to_num(np.abs(y - undisturbed), nan=np.inf).max() for y in found))


def _evaluated(
    graph: Graph, x: Reals, rounding: float = 0.0, generator: torch.Generator | None = None, linearised: bool = False
) -> tuple[Reals, float]:
    """The graph's output at one input, and the largest absolute value on the way.

    With a generator each value is disturbed by `rounding` times its largest entry.
    """
    values: dict[int, Tensor] = {}
    readers = graph.readers
    largest = 0.0
    with torch.no_grad():
        for index, node in enumerate(graph.nodes):
            if index == 0:
                value = torch.from_numpy(np.array(x)).reshape(1, *node.shape)
            else:
                value = _value(node, [values[i] for i in node.inputs], linearised).expand(1, *node.shape)
            peak = float(value.abs().max())
            largest = max(largest, np.inf if np.isnan(peak) else peak)
            if generator is not None and peak < np.inf:
                noise = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
                value = value + rounding * peak * noise
            values[index] = value
            for i in set(node.inputs):
                if max(readers[i]) == index and i != graph.output:
                    del values[i]
    return values[graph.output].reshape(-1).numpy().copy(), largest


def _is_softplus(node: Node) -> bool:
    return isinstance(node, Elementwise) and node.function == "softplus"


def _value(node: Node, inputs: Sequence[Tensor], linearised: bool) -> Tensor:
    """The node's value; with `linearised` softplus as torch computes it: x itself from beta x = 20 on, where they differ by 2e-9."""
    if linearised and isinstance(node, Elementwise) and _is_softplus(node):
        return functional.softplus(inputs[0], node.argument["beta"])
    return evaluate(node, *inputs)


# ----------------------------------------------------------------------------------------------- the source itself


def _deterministic(source: SourceModel, before: Reals, after: Reals) -> None:
    """Raise if two evaluations at the same input differ by more than a few roundings."""
    scale = float(np.abs(before[np.isfinite(before)]).max(initial=0.0))
    same = before.shape == after.shape and np.array_equal(np.isfinite(before), np.isfinite(after))
    if same:
        with np.errstate(invalid="ignore"):
            gap = np.abs(before - after)
        same = bool(gap[np.isfinite(before)].max(initial=0.0) <= 64 * ROUNDING[source.dtype] * scale)
    if not same:
        raise ModelError(
            "expected the model to give the same output twice for one input, got two different ones; switch off dropout and "
            "other randomness, and states that change with every call"
        )


def _separable(source: SourceModel, x: Reals, y: Reals) -> None:
    """Raise if the value of an example depends on the other example of its batch."""
    try:
        together = _outputs(source, [x, y])
    except ModelError:
        return  # it takes one example at a time
    for alone, other, both in zip(_outputs(source, [x]), _outputs(source, [y]), together, strict=True):
        if alone.shape == both.shape and alone.shape[:1] != (1,):
            raise ModelError(
                f"expected outputs with a batch axis, got the shape {list(both.shape)} for one example and for two; let the "
                "model reduce the other axes only"
            )
        wanted = np.concatenate([alone.reshape(1, -1), other.reshape(1, -1)])
        if both.size != wanted.size:
            raise _mixes("their number is not twice that of one example")
        scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
        with np.errstate(invalid="ignore"):
            gap = np.abs(both.reshape(2, -1) - wanted)
        # Where an output is 0 by cancellation, what is left of it is rounding of numbers as large as the input.
        noise = 64 * ROUNDING[source.dtype] * float(np.abs(np.concatenate([x, y], axis=None)).max(initial=0.0))
        if gap[np.isfinite(gap)].max(initial=0.0) > max(TOLERANCE[source.dtype] * scale, noise):
            raise _mixes("they differ from those of each example alone")


def _mixes(what: str) -> ModelError:
    return ModelError(
        f"expected each example's output to depend on that example alone, got a model that mixes the examples of a batch: "
        f"with two of them, {what}; normalise over features, not over the batch axis"
    )
