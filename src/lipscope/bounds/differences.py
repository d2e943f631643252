"""What a bound of all outputs says about the difference of two of them.

The difference is a linear map of the outputs, of norm sqrt(2) in l2, 1 from l1 and 2 from linf: one more segment behind the proof. In l2 the
multipliers of a quadratic proof say more, see `quadratic.pairs`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from lipscope.bounds.method import Candidate, Effort, Proof, Step
from lipscope.bounds.problem import Problem
from lipscope.bounds.product import Composition
from lipscope.bounds.quadratic.pairs import Multipliers
from lipscope.bounds.segments import anchors, segment
from lipscope.claims.rounding import sum_up
from lipscope.operator_norm import enclose


@dataclass(frozen=True, eq=False)
class AllOutputs:
    """What is known of all outputs of a network together.

    Attributes:
        problem: about them.
        candidate: the best bound, with its proof; None if there is none.
        multipliers: those of the difference in question.
    """

    problem: Problem
    candidate: Candidate | None
    multipliers: Multipliers = field(default_factory=dict)

    def tell(self, problem: Problem) -> None:
        """Let the methods that bound the difference know."""
        problem.follow(self.problem)
        problem.shared["all outputs"] = self
        if self.multipliers:
            problem.shared["multipliers"] = self.multipliers


def from_all_outputs(problem: Problem, effort: Effort) -> Candidate | None:
    """The bound of a difference that the proof for all outputs implies.

    None where nothing is known of them, where the proof is one for each of many boxes, or where the network has several outputs:
    those that the difference does not read are left out of its graph.
    """
    known = problem.shared.get("all outputs")
    if not isinstance(known, AllOutputs) or known.candidate is None or known.candidate.proof is None:
        return None
    whole, proof = known.candidate, known.candidate.proof
    start, end = known.problem.graph.output, problem.graph.output
    if proof.cover is not None or not proof.steps or start not in problem.reaching:
        return None
    began = time.monotonic()
    norm = enclose(segment(problem, start, end).map, problem.norm)
    steps = (*proof.steps, Step(end, "segment", 0.0, start, norm.upper, norm.evidence))
    value = Composition(problem, effort, anchors(problem)).recompose(steps)
    steps = (*proof.steps, replace(steps[-1], constant=value))
    return Candidate(
        whole.method, value, time.monotonic() - began, Proof(proof.method, steps),
        sum_up([whole.failure, norm.failure]),
        note="from the bound of all outputs",
    )  # fmt: skip
