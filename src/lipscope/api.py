"""The few calls that most people need: load a model, bound it, save the bundle, check it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import lipcheck
from lipscope.bounds.auto import best, gathered, methods
from lipscope.bounds.differences import AllOutputs
from lipscope.bounds.local.narrowing import affordable
from lipscope.bounds.lower import lower_bound
from lipscope.bounds.method import Candidate, Effort
from lipscope.bounds.problem import Problem, pose
from lipscope.bounds.quadratic.pairs import shared_multipliers
from lipscope.bounds.unbounded import Unbounded, prove_unbounded
from lipscope.certificate.pairs import Pairs
from lipscope.certificate.result import Result, Upper
from lipscope.claims.claim import Claim, parse_output
from lipscope.claims.errors import InternalError, Interrupted, ResourceError, UsageError
from lipscope.claims.norms import parse_norm
from lipscope.claims.progress import Progress, silent
from lipscope.claims.regions import Region, parse_region
from lipscope.network.graph import Graph, finite_weights

if TYPE_CHECKING:
    from torch import nn

    from lipscope.network.load.load import LoadedModel

FAILURE = 1e-9
"""The largest probability with which the randomised norms of a whole network may be wrong."""

WHOLE_SHARE = 0.3
"""The share of the budget of all differences that goes into all outputs together."""

SMALLEST_BUDGET = 0.1
"""Seconds that every difference of outputs gets, also when the budget is spent."""

AGAIN = 1.0
"""Seconds for which the search for a lower bound may begin again where it ends below the upper one, or as long as that took if it took longer."""

UPPER_SHARE, LOWER_SHARE = 0.9, 0.15
"""The shares of the budget that the methods, and the search for a lower bound, may take; the latter rarely needs all of its own."""


def load(
    source: nn.Module | torch.export.ExportedProgram | str | Path,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    weights: str | Path | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> LoadedModel:
    """A model as lipscope's graph, shown to compute what the source model computes.

    Args:
        source: a module in eval mode, an exported program, the path of an `.onnx`, `.onnx.gz` or `.pt2` file, or
            `package.module:factory`.
        input_shape: shape of one example without its batch axis; needed for modules and factories.
        weights: a `.safetensors`, `.pt` or `.pth` file of weights for a module or factory.
        mean: what the user's pipeline subtracts from the raw input before the model, one number or one per channel.
        std: what it divides by then. With these the constant is in units of the raw input.

    Raises:
        ModelError: the file cannot be read, the model is in train mode, is not deterministic, or graph and model disagree.
        UnsupportedError: some operations are not understood; all of them are listed.
    """
    from lipscope.network.load import load as front

    return front.load(source, input_shape=input_shape, weights=weights, mean=mean, std=std)


def bound(
    model: LoadedModel | Graph,
    norm: str = "l2",
    region: Region | str = "everywhere",
    output: str = "all",
    method: str = "auto",
    budget: float = 60.0,
    *,
    memory: int | None = None,
    check: bool = True,
    progress: Progress = silent,
) -> Result:
    """An interval for the Lipschitz constant of a network, with its proof and its witness.

    Args:
        model: what `load` returned, or a graph.
        norm: l1, l2 or linf, of input and output.
        region: everywhere, a box or a ball, as an object or in the words of the command line; in raw input units.
        output: `all`, `I`, or `I-J` for the difference of two, counted from 0 in the flattened output.
        method: `auto` or the name of one method.
        budget: seconds for the search; the check is not counted.
        memory: bytes that the matrices of one part of the network, or of one operator norm, may take.
        check: whether the independent checker decides at the end; without it the upper bound is only *computed*.
        progress: called with what is being done and the share that is done.

    Returns:
        The result. Interrupted by the user it holds what was reached, with `interrupted` set.

    Raises:
        UsageError: the norm, region, output or method does not exist or does not fit the model.
        Interrupted: the user stopped it before anything was reached.

    Stopped while it is being checked, the result is returned with `interrupted` set and its bound *computed*. Where the
    temporary folder has no room for the bundle that the checker reads, the bound is *computed* too, with a warning.

    Example:
        >>> import torch
        >>> from lipscope import bound, load
        >>> twice = torch.nn.Linear(3, 3, bias=False).eval()
        >>> with torch.no_grad():
        ...     _ = twice.weight.copy_(2 * torch.eye(3))
        >>> result = bound(load(twice, input_shape=(3,)))
        >>> result.upper.status, round(result.upper.value, 6), round(result.lower, 6)
        ('certified', 2.0, 2.0)
    """
    return _bound(model, norm, region, output, method, budget, memory, check, progress)


def bound_pairs(
    model: LoadedModel | Graph,
    norm: str = "l2",
    region: Region | str = "everywhere",
    method: str = "auto",
    budget: float = 60.0,
    *,
    memory: int | None = None,
    check: bool = True,
    progress: Progress = silent,
) -> Pairs:
    """Intervals for the constants of all differences of two outputs, which margins need, each with its proof and its witness.

    All outputs together are bounded first. Their bound implies one of every difference, and in l2 their multipliers, scaled, a better one; what
    is left of the budget goes into each difference's own bound.

    Args:
        model: as for `bound`, like all that follow but the budget.
        norm: of input and output.
        region: where.
        method: of every single bound.
        budget: seconds for all searches together; the checks are not counted.
        memory: bytes for the matrices of one part.
        check: whether the checker decides.
        progress: called with what is being done.

    Raises:
        UsageError: as `bound`, or the model has fewer than two outputs.
        Interrupted: the user stopped it before anything was reached; later, what was reached is returned.
    """
    graph = model if isinstance(model, Graph) else model.graph
    names = list(combinations(range(graph.output_size), 2))
    if not names:
        raise UsageError(f"expected a model with at least two outputs for pairs, got {graph.output_size}")
    whole = _bound(model, norm, region, "all", method, budget * WHOLE_SHARE, memory, check, progress)
    proof = None if whole.candidate is None else whole.candidate.proof
    shared = {} if proof is None else shared_multipliers(whole.problem, proof, names)
    found, left, stopped = list[Result](), budget - whole.seconds, whole.interrupted
    for number, (i, j) in enumerate(names):
        if stopped:
            break
        share = max(left / (len(names) - number), SMALLEST_BUDGET)
        progress(f"outputs {i}-{j}", number / len(names))
        try:
            known = AllOutputs(whole.problem, whole.candidate, shared.get((i, j), {}))
            result = _bound(model, norm, region, f"{i}-{j}", method, share, memory, check, silent, known)
        except Interrupted:
            stopped = True
            break
        found.append(result)
        left, stopped = left - result.seconds, result.interrupted
    return Pairs(whole, tuple(found), stopped)


@torch.inference_mode(False)  # adjoints are derivatives, whatever mode the caller is in
@torch.enable_grad()
def _bound(
    model: LoadedModel | Graph, norm: str, region: Region | str, output: str, method: str, budget: float,
    memory: int | None, check: bool, progress: Progress, known: AllOutputs | None = None,
) -> Result:  # fmt: skip
    graph = model if isinstance(model, Graph) else model.graph
    agreement = () if isinstance(model, Graph) else tuple(model.agreement)
    finite_weights(graph)
    methods(method)  # a wrong name is refused before anything is computed
    if not budget > 0:
        raise UsageError(f"expected a budget of more than 0 seconds, got {budget}")
    if memory is not None and not memory > 0:
        raise UsageError(f"expected more than 0 bytes of memory, got {memory}")
    chosen = parse_norm(norm)
    where = parse_region(region, graph.input_size, chosen) if isinstance(region, str) else region
    claim = Claim(chosen, where, parse_output(output, graph.output_size))
    data = torch.stack([torch.from_numpy(x).reshape(-1) for x, _ in agreement]) if agreement else None
    began, cpu = time.monotonic(), time.process_time()
    problem = pose(graph, claim, data, affordable(budget))
    if known is not None:
        known.tell(problem)
    effort = Effort(deadline=began + UPPER_SHARE * budget, failure=FAILURE, memory=memory, progress=progress)
    try:
        result = _search(problem, method, effort, budget)
    except KeyboardInterrupt:
        raise Interrupted("stopped before any bound was reached; give it a little more time") from None
    result = replace(
        result,
        agreement=agreement,
        dtype="float64" if isinstance(model, Graph) else model.dtype,
        warnings=(*(() if isinstance(model, Graph) else model.warnings), *_remarks(result)),
        seconds=time.monotonic() - began,
        cpu_seconds=time.process_time() - cpu,
    )
    if result.found.value is not None and result.found.value < result.lower:
        raise InternalError(
            f"the upper bound {result.upper.value!r} came out below the attained lower bound {result.lower!r}; "
            "please report this model: one of the two is wrong, and neither is returned"
        )
    if not check or result.interrupted:
        return result
    progress("checking the bundle independently", 0.0)
    try:
        return _checked(result, progress)
    except KeyboardInterrupt:
        return replace(result, interrupted=True)
    except (ResourceError, OSError) as error:
        remark = (
            f"not checked, so no more than computed: {error}; free space, write a bundle, and run lipscope check on it"
        )
        return replace(result, warnings=(*result.warnings, remark))


def check(folder: str | Path, progress: Progress = silent) -> lipcheck.Verdict:
    """The independent checker's verdict on a bundle, also written into it as `verdict.json`.

    Raises:
        UsageError: the folder cannot be read as a bundle.
    """
    try:
        return lipcheck.check(Path(folder), progress=lambda message: progress(f"checking: {message}", 0.0))
    except lipcheck.Unreadable as error:
        raise UsageError(str(error)) from None


def _checked(result: Result, progress: Progress) -> Result:
    """The result with the checker's statuses; where it refuses the best bound, with the best of the others that it accepts.

    Bounds beyond what the checker's own error bounds can hold (a constant of 1e-80, layers whose rounding errors grow over a depth of hundreds)
    are refused, and a larger one that is proved is worth more.
    """
    first = result.checked(progress)
    if not first.refused:
        return first
    others = [c for c in result.candidates if c is not result.candidate and c.value is not None and c.proof is not None]
    for other in sorted(others, key=lambda c: (c.value, c.failure)):
        found = replace(result.found, value=other.value, method=other.method, failure=other.failure)
        second = replace(result, found=found, candidate=other).checked(progress)
        if not second.refused:
            best = f"{result.found.method} has {result.found.value!r}, which the checker refuses ({first.refusal})"
            return replace(second, warnings=(*second.warnings, f"{best}; this is the best bound that it accepts"))
    return first


def _remarks(result: Result) -> tuple[str, ...]:
    """What a user should know about work that was left out."""
    found: list[str] = []
    if result.candidate is not None and "stopped early" in result.candidate.note:
        found.append("the budget ran out before the best norms were found: a larger --budget gives a smaller bound")
    narrowing = result.problem.narrowing
    if narrowing is not None and narrowing.left:
        found.append(
            f"{len(narrowing.left)} layers keep interval bounds, because linear ones would take too long; a larger "
            "--budget, a smaller region or a part of the model may get tighter ones"
        )
    return tuple(found)


def _search(problem: Problem, method: str, effort: Effort, budget: float) -> Result:
    began = time.monotonic()
    found, stopped = gathered(problem, effort, method)
    winner, spent = best(found), time.monotonic() - began
    unbounded = prove_unbounded(problem) if winner is None else None
    share = budget * LOWER_SHARE
    search = replace(effort, deadline=time.monotonic() + (0.2 if stopped else share))
    if winner is not None and winner.value is not None:
        search = replace(search, known=winner.value)
    witness = None
    try:
        if unbounded is None:
            witness = lower_bound(
                problem.with_points([p for c in found for p in c.points]), search, again=max(spent, AGAIN)
            )
    except KeyboardInterrupt:
        stopped = True
    return Result(
        problem=problem,
        found=_upper(problem, winner, unbounded, found),
        candidate=winner,
        unbounded=unbounded,
        witness=witness,
        candidates=tuple(found),
        interrupted=stopped or (witness is not None and witness.interrupted),
    )


def _upper(
    problem: Problem, winner: Candidate | None, unbounded: Unbounded | None, found: Sequence[Candidate]
) -> Upper:
    if winner is not None:
        return Upper(winner.value, winner.method, "computed", winner.failure)
    if unbounded is not None:
        name = problem.graph.nodes[unbounded.node].name
        return Upper(None, unbounded.method, "unbounded", node=unbounded.node, layer=name, reason=unbounded.reason)
    blocking = next((c.blocked for c in found if c.blocked is not None), None)
    node = problem.stored.output if blocking is None else blocking.node  # a refused method: the network as a whole
    return Upper(
        None, "none", "no-bound", node=node, layer=problem.graph.nodes[node].name,
        reason=blocking.reason if blocking else "; ".join(f"{c.method}: {c.note}" for c in found),
    )  # fmt: skip
