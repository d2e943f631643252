"""Evidence `torus` of the rule `quadratic`: the inequality of a part made of convolutions, frequency by frequency.

On the torus (`torus_walk`) everything commutes with shifts of the coarsest grid, and multipliers are the same at all its positions; so the
quadratic form is block diagonal after a unitary discrete Fourier transform. It is nonnegative on all real signals if at every
frequency w (one of w and -w is enough) the Hermitian matrix

    M(w) = rho I_0 + sum_j lambda_j ((e_j - alpha_j w_j)^H (e_j - beta_j w_j) + its adjoint) - F^H F

is positive semidefinite, w_j and F being the polynomials of the units and of the output at `exp(i w)`. Behind a mean over all positions F
is there at frequency 0 alone, times the square root of the number of positions of the coarsest grid: a sum over positions
is that times the coefficient of frequency 0.

M(w) is positive semidefinite with the real matrix [[Re, -Im], [Im, Re]]. Entries of polynomials are off by gamma_k of the absolute
composition; at a frequency come roots of unity within 3u, their products, and a sum over the shifts; in the matrix three factors and a sum. A
complex product and sum costs at most twice the roundings of a real one, each part.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipcheck.bundle import Bundle, integer, keys
from lipcheck.errors import Rejected
from lipcheck.grid import _roots
from lipcheck.nodes import Network
from lipcheck.quadratic import semidefinite
from lipcheck.rounding import Floats, gamma
from lipcheck.segments import Slopes
from lipcheck.torus_walk import Read, TorusWalk

FLOOR = 1e-150
"""Added to absolute values: gamma of it is above what underflow loses."""

MOST = 200_000_000
"""Entries of M at all frequencies together."""

Complex = NDArray[np.complex128]


def prove_torus(
    network: Network, slopes: Slopes, source: int, target: int, t: float, evidence: object, bundle: Bundle
) -> None:
    """The map from node `source` to node `target` has constant at most t in l2.

    Raises:
        Rejected: not proved.
    """
    stored = keys(evidence, {"kind", "counts", "multipliers"}, "evidence torus")
    if not isinstance(stored["counts"], list):
        raise Rejected("expected counts as a list")
    counts = tuple(integer(n, "count", 1, 100_000) for n in stored["counts"])
    part = TorusWalk(network, slopes, source, target, counts)
    values = _multipliers(part, stored["multipliers"], bundle)
    square = float(np.nextafter(t * t, 0.0))
    if not 0 < square < math.inf:
        raise Rejected(f"torus proves no bound {t!r}")
    order = part.input_size + len(values)
    if 2 * order * order > MOST:
        raise Rejected("torus: the matrices are too large to check")
    _Matrices(part, values, square).demand_definite()


def _multipliers(part: TorusWalk, document: Any, bundle: Bundle) -> Floats:
    sizes: dict[int, int] = {}
    for node, _, lower, _ in part.units:
        sizes[node] = sizes.get(node, 0) + len(lower)
    if not isinstance(document, dict) or set(document) != {str(n) for n in sizes}:
        raise Rejected("expected multipliers for exactly the nodes with units between the two ends")
    stored = {n: bundle.floats(document[str(n)], (count,), f"multipliers of node {n}") for n, count in sizes.items()}
    taken = dict.fromkeys(sizes, 0)
    found = []
    for node, _, lower, _ in part.units:
        first = taken[node]
        taken[node] = first + len(lower)
        found.append(stored[node][first : taken[node]])
    values = np.concatenate([np.zeros(0), *found])
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise Rejected("expected multipliers >= 0")
    return values


class _Matrices:
    """M at all frequencies, and how far an entry may be off."""

    def __init__(self, part: TorusWalk, values: Floats, square: float) -> None:
        self.part, self.values, self.square = part, values, square
        sizes = [part.input_size, *(len(u[2]) for u in part.units)]
        ends = np.cumsum([0, *sizes]).tolist()
        self.places = [slice(a, b) for a, b in pairwise(ends)]
        self.order = ends[-1]
        self.lower = np.concatenate([np.zeros(0), *(u[2] for u in part.units)])
        self.upper = np.concatenate([np.zeros(0), *(u[3] for u in part.units)])
        self.roots = [_roots(n) for n in part.counts]
        self.gain = math.sqrt(math.prod(part.counts)) if part.mean is not None else 1.0
        reads = [*(u[1] for u in part.units), part.output]
        shifts = max(len(t) for r in reads for t in r.terms.values())
        axes = len(part.counts)
        self.terms = max(r.roundings for r in reads) + 2 * shifts + 16 * axes + 16

    def _at(self, read: Read, frequency: tuple[int, ...]) -> Complex:
        rows = len(next(iter(read.size.values())))
        result = np.zeros((rows, self.order), dtype=np.complex128)
        for block, polynomial in read.terms.items():
            for shift, matrix in polynomial.items():
                root = 1.0 + 0.0j
                for j, a, known in zip(frequency, shift, self.roots, strict=True):
                    root *= known[(-j * a) % len(known)]
                result[:, self.places[block]] += root * matrix
        return result

    def _heavy(self, read: Read) -> Floats:
        rows = len(next(iter(read.size.values())))
        result = np.zeros((rows, self.order))
        for block, size in read.size.items():
            result[:, self.places[block]] = size
        return result + FLOOR

    def _error(self) -> Floats:
        n = self.part.input_size
        reads = np.concatenate([np.zeros((0, self.order)), *(self._heavy(u[1]) for u in self.part.units)])
        output = self.gain * self._heavy(self.part.output)
        cross = self.values * (np.abs(self.lower) + np.abs(self.upper)) + FLOOR
        inner = 2 * self.values * np.abs(self.lower * self.upper) + FLOOR
        heavy = output.T @ output + reads.T @ (inner[:, None] * reads)
        heavy[n:] += cross[:, None] * reads
        heavy[:, n:] += (cross[:, None] * reads).T
        index = np.arange(self.order)
        heavy[index, index] += np.concatenate([np.full(n, self.square), 2 * self.values])
        count = 2 * self.terms + len(self.values) + len(output) + 24
        error = 4 * gamma(2 * count) * heavy
        return np.block([[error, error], [error, error]])

    def _matrix(self, frequency: tuple[int, ...]) -> Complex:
        matrix: Complex
        n = self.part.input_size
        reads = np.concatenate(
            [np.zeros((0, self.order), np.complex128), *(self._at(u[1], frequency) for u in self.part.units)]
        )
        cross = (self.values * (self.lower + self.upper))[:, None] * reads
        matrix = reads.conj().T @ ((2 * self.values * (self.lower * self.upper))[:, None] * reads)
        if self.part.mean is None or not any(frequency):
            output = self.gain * self._at(self.part.output, frequency)
            matrix -= output.conj().T @ output
        matrix[n:] -= cross
        matrix[:, n:] -= cross.conj().T
        index = np.arange(self.order)
        matrix[index, index] += np.concatenate([np.full(n, self.square), 2 * self.values])
        return matrix

    def demand_definite(self) -> None:
        """M is positive semidefinite at every frequency.

        Raises:
            Rejected: it is not proved at one of them.
        """
        error = self._error()
        for frequency in np.ndindex(self.part.counts[0] // 2 + 1, *self.part.counts[1:]):
            m = self._matrix(frequency)
            real = np.block([[m.real, -m.imag], [m.imag, m.real]])
            real = (real + real.T) / 2
            if not semidefinite(real, error):
                raise Rejected(f"the quadratic inequality at frequency {frequency} is not proved")
