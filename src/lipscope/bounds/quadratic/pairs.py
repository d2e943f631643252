"""Bounds of all differences of two outputs from one set of multipliers.

If `M = N - F^T F >= 0` at (rho, lambda), N being linear in them, then for the row `f = F_i - F_j` the matrix `tau N - f^T f` is positive semidefinite
exactly for `tau >= f N^{-1} f^T`: the multipliers `tau lambda` prove `tau rho` for the difference. One factorisation of N, which is that of all layers
but the last map, serves all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lipscope.bounds.method import Proof
from lipscope.bounds.problem import Problem
from lipscope.bounds.quadratic.elimination import smallest_rho
from lipscope.bounds.quadratic.envelope import envelope, factored
from lipscope.bounds.quadratic.forms import piece
from lipscope.bounds.quadratic.stacked import Vector

Pair = tuple[int, int]
Multipliers = dict[int, Vector]
"""By the node whose units they belong to."""

INSIDE = 1e-9
"""How much larger than the smallest multipliers of a difference those are that are handed on."""


def shared_multipliers(problem: Problem, proof: Proof, pairs: Sequence[Pair]) -> dict[Pair, Multipliers]:
    """For each pair multipliers that bound the difference, from those that bound all outputs.

    Empty where the proof's last step is not a quadratic one in l2, or its multipliers allow no factorisation.

    Args:
        problem: of all outputs.
        proof: its proof.
        pairs: of outputs, counted from 0.
    """
    if problem.norm != "l2":  # elsewhere every row or column has multipliers of its own
        return {}
    step = next((s for s in proof.steps if s.node == problem.graph.output), None)
    if step is None or step.rule != "quadratic" or step.start is None or step.evidence is None:
        return {}
    if step.evidence["kind"] != "quadratic":  # on a torus the last map has no part of its own
        return {}
    stored = step.evidence["multipliers"]
    assert isinstance(stored, dict)
    part = piece(problem, step.start, step.node)
    small = part.stacked.reduced_input()
    values = np.concatenate([stored[str(node)] for node, _ in part.owners])
    rho = smallest_rho(small, values)
    if not 0 < rho < np.inf:
        return {}
    free = replace(small, output={})
    factor = factored(free.matrix(rho, values), envelope(free))
    if factor is None:
        return {}
    rows = np.zeros((len(next(iter(small.output.values()))), small.dimension))
    for block, matrix in small.output.items():
        rows[:, small.block(block)] = matrix
    solved = factor.forward(np.ascontiguousarray(rows.T))
    found = {}
    for i, j in pairs:
        tau = float(np.sum((solved[:, i] - solved[:, j]) ** 2)) * (1 + INSIDE)
        found[i, j] = {int(node): stored[str(node)] * tau for node, _ in part.owners}
    return found
