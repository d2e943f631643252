"""A proof over boxes that cover the region: the bound is the largest of theirs.

The region is convex. A segment between two of its points meets each of finitely many closed boxes in an interval; where the boxes cover the
region these intervals cover the segment, and with constant K_b on each box the values at its ends differ by at most (largest K_b) times its
length. The boxes come from cutting the box around the region, again and again, each time at a place inside along one coordinate, so that they
cover it by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lipcheck.boxes import Box
from lipcheck.bundle import finite_real, integer, keys
from lipcheck.errors import Rejected

MOST_CUTS = 20_000


def prove_cover(
    document: object, around: Box, prove: Callable[[Box, object], float], progress: Callable[[str], None]
) -> float:
    """The largest of the constants that are proved for the boxes of a cover.

    Args:
        document: the cuts, and a proof for each box that stays whole.
        around: a box (flat) that holds the region.
        prove: the constant that a proof proves for a box.
        progress: called before each box.

    Raises:
        Rejected: the boxes do not cover `around`, or the proof of one fails; the message names it.
    """
    stored = keys(document, {"method", "cover", "leaves"}, "proof.json")
    if not isinstance(stored["leaves"], list) or not isinstance(stored["method"], str):
        raise Rejected("expected the proofs of the boxes as a list")
    worst, leaves = 0.0, iter(stored["leaves"])
    for number, box in enumerate(boxes_of(stored["cover"], around)):
        leaf = next(leaves, None)
        if isinstance(leaf, dict) and "cover" in leaf:
            raise Rejected("expected no cover within a cover")
        progress(f"box {number}")
        try:
            constant = prove(box, leaf)
        except Rejected as error:
            raise Rejected(f"box {number} of the cover: {error}") from None
        if not constant >= 0:
            raise Rejected(f"box {number} of the cover: the constant is {constant}")
        worst = max(worst, constant)
    if next(leaves, None) is not None:
        raise Rejected("expected no proofs after that of the last box")
    return worst


def boxes_of(document: object, around: Box) -> Iterator[Box]:
    """The boxes that are left when `around` (flat) is cut as a list in preorder says; None stands for a box that stays whole.

    Raises:
        Rejected: the list does not describe cuts.
    """
    if not isinstance(document, list) or not 1 <= len(document) <= MOST_CUTS:
        raise Rejected(f"expected cuts as a list of 1 to {MOST_CUTS} entries")
    waiting = [around]
    for entry in document:
        if not waiting:
            raise Rejected("the list of cuts goes on after the last box")
        box = waiting.pop()
        if entry is None:
            yield box
            continue
        if not isinstance(entry, list) or len(entry) != 2:
            raise Rejected("expected a coordinate and a place for a cut")
        index = integer(entry[0], "a cut's coordinate", 0, box.lo.size - 1)
        place = finite_real(entry[1], "a cut's place")
        if not box.lo[index] < place < box.hi[index]:
            raise Rejected(f"expected a cut inside the box, got {place!r} in coordinate {index}")
        high, low = np.array(box.hi), np.array(box.lo)
        high[index] = low[index] = place
        waiting += [Box(low, box.hi), Box(box.lo, high)]
    if waiting:
        raise Rejected(f"the list of cuts ends early: {len(waiting)} boxes are missing")
