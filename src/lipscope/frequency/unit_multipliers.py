"""Quadratic steps about a torus, with a multiplier for every unit in the place of one for every channel.

What is put before a network restricts it to a band does not commute with shifts, so that a proof frequency by frequency cannot be
moved behind it. Its multipliers can. With every unit's the inequality holds on the torus, so also for differences that are 0 outside
the image (a principal part of the same matrix), where it is the inequality of the part itself, with no larger constant. Here that is
not relied upon: constants are proved again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lipscope.bounds.method import Candidate, Proof, Step
from lipscope.bounds.problem import Problem
from lipscope.bounds.quadratic.certify import proved_constant
from lipscope.bounds.quadratic.elimination import smallest_rho
from lipscope.bounds.quadratic.forms import OutOfRange, dimension, entries, piece, refusal
from lipscope.bounds.quadratic.method import SECONDS, Quadratic
from lipscope.bounds.quadratic.stacked import Vector
from lipscope.bounds.quadratic.torus import Torus
from lipscope.bounds.quadratic.windows import Window, affordable, cubes

PROOF = 0.5
"""Of what matrices, closed form and proof of a part take, the share of matrices and proof."""


def on_torus(step: Step) -> bool:
    """Whether a step's evidence speaks of a torus."""
    return step.rule == "quadratic" and step.evidence is not None and step.evidence.get("kind") == "torus"


def by_unit(problem: Problem, candidate: Candidate) -> Candidate | None:
    """The candidate without steps about a torus; None where their parts are too large, or no function of one variable is in them.

    Steps from the input lack their norm then: it is to be found for a band.
    """
    if candidate.proof is None or not any(map(on_torus, candidate.proof.steps)):
        return candidate
    steps = [_by_unit(problem, step) if on_torus(step) else step for step in candidate.proof.steps]
    complete = [step for step in steps if step is not None]
    if len(complete) < len(steps):
        return None
    return replace(candidate, proof=Proof(candidate.method, tuple(complete)))


def proof_seconds(problem: Problem, steps: Sequence[Step]) -> float:
    """About what proving the quadratic steps from the input takes, without a search: a count of operations."""
    return (
        PROOF
        * SECONDS
        * sum(cubes(problem, Window(0, step.node)) for step in steps if step.rule == "quadratic" and step.start == 0)
    )


def _by_unit(problem: Problem, step: Step) -> Step | None:
    assert step.start is not None
    where = (problem, step.start, step.node)
    fits = refusal(*where) is None and dimension(*where) <= Quadratic.limit
    if not fits or 8 * entries(*where) > affordable(None):
        return None
    multipliers = _spread(step, Torus(*where))
    evidence: dict[str, object] = {"kind": "quadratic", "multipliers": multipliers}
    if step.start == 0:
        return replace(step, evidence=evidence, norm=None)
    try:
        part = piece(*where)
    except OutOfRange:
        return None
    values = np.concatenate([multipliers[str(owner)] for owner, _ in part.owners])
    with np.errstate(all="ignore"):
        rho = smallest_rho(part.stacked.reduced_input(), values)
        norm = proved_constant(part, values, rho) if math.isfinite(rho) else None
    return None if norm is None else replace(step, evidence=evidence, norm=norm)


def _spread(step: Step, torus: Torus) -> dict[str, Vector]:
    """The multipliers of a step by node, one for each unit whose slope is not fixed."""
    problem, found = torus.problem, {}
    stored = {} if step.evidence is None else step.evidence["multipliers"]
    assert isinstance(stored, dict)
    for owner, values in stored.items():
        index = int(owner)
        shape, phases = problem.graph.nodes[index].shape, torus.phases(index)
        spread = np.asarray(values).reshape(shape[1], *phases)
        for axis, period in enumerate(phases, start=1):
            spread = np.take(spread, np.arange(shape[axis + 1]) % period, axis=axis)
        lower, upper = problem.slopes[index]
        found[owner] = spread.reshape(-1)[(lower != upper).reshape(-1).numpy()]
    return found
