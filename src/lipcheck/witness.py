"""What is proved from values at given points: the lower bound, that there is no finite constant, the agreement."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from flint import arb, ctx

from lipcheck import precise
from lipcheck.boxes import Box, Boxes
from lipcheck.bundle import Bundle, keys
from lipcheck.errors import Rejected
from lipcheck.functions import arb_down
from lipcheck.jumps import COUNTABLE_EXCEPTIONS, frozen
from lipcheck.nodes import Network
from lipcheck.proof import Proof, prove_upper
from lipcheck.region import Region
from lipcheck.rounding import Floats, downs, norm_down, norm_up, ups


def _value(network: Network, lo: Floats, hi: Floats) -> Box:
    return Boxes(network, Box(lo, hi))[network.output]


def _points(names: tuple[str, str], document: object, bundle: Bundle, size: int, what: str) -> tuple[Floats, Floats]:
    stored = keys(document, set(names), what)
    first, second = (bundle.vector(stored[name], size, f"{name} of {what}") for name in names)
    return first, second


def lower_bound(network: Network, region: Region, document: object, bundle: Bundle, wanted: float) -> float:
    """A lower bound of `|f(x) - f(y)|/|x - y|` for the witness, tight enough for `wanted` if that is cheap.

    Raises:
        Rejected: the witness does not fit, is outside the region, or its values cannot be enclosed.
    """
    x, y = _points(("x", "y"), document, bundle, network.nodes[0].size, "witness.json")
    for name, point in (("x", x), ("y", y)):
        if not region.contains(point):
            raise Rejected(f"the witness {name} is outside the region")
    if (x == y).all():
        raise Rejected("the two points of the witness are the same")
    best, failure = 0.0, None
    try:
        best = _double_quotient(network, region.norm, x, y)
    except Rejected as error:
        failure = error
    if not best >= wanted and precise.cost(network) <= precise.LIMIT:
        try:
            best = max(best, _ball_quotient(network, region.norm, x, y))
            failure = None
        except Rejected as error:
            failure = failure or error
    if failure is not None and best == 0:
        raise failure
    return best


def _double_quotient(network: Network, norm: str, x: Floats, y: Floats) -> float:
    first, second = _value(network, x, x), _value(network, y, y)
    with np.errstate(all="ignore"):
        least = np.maximum(np.maximum(downs(first.lo - second.hi), downs(second.lo - first.hi)), 0.0)
        distance = norm_up(ups(np.abs(x - y)), norm)
        quotient = math.nextafter(norm_down(least, norm) / distance, 0.0)
    return quotient if math.isfinite(quotient) else 0.0


def _ball_quotient(network: Network, norm: str, x: Floats, y: Floats) -> float:
    balls = [np.array([arb(float(v)) for v in point], dtype=object) for point in (x, y)]
    values = [precise.evaluate(network, point).ravel() for point in balls]
    with ctx.workprec(precise.bits(network)):
        top = _norm([abs(a - b) for a, b in zip(*values, strict=True)], norm)
        return arb_down(top / _norm([abs(a - b) for a, b in zip(*balls, strict=True)], norm))


def _norm(values: list[arb], norm: str) -> arb:
    if norm == "l1":
        return sum(values, arb(0))
    if norm == "l2":
        return sum((v * v for v in values), arb(0)).sqrt()
    top = values[0]
    for value in values[1:]:
        top = top.max(value)
    return top


# ---------------------------------------------------------------------------------------------------- unbounded


def prove_unbounded(region: Region, document: object, bundle: Bundle, proof: Proof) -> str:
    """Prove that the network of `proof` has no finite constant; returns the method.

    Raises:
        Rejected: not proved.
    """
    network = proof.network
    method = document.get("method") if isinstance(document, dict) else None
    size = network.nodes[0].size
    if method == "polynomial":
        stored = keys(document, {"method", "x", "direction"}, "proof.json")
        if region.kind != "everywhere":
            raise Rejected("method polynomial needs the region everywhere")
        _polynomial(network)
        x, direction = _points(
            ("x", "direction"), {"x": stored["x"], "direction": stored["direction"]}, bundle, size, "proof.json"
        )
        if not (_curved(network, x, direction) or _curved_precisely(network, x, direction)):
            raise Rejected("the second difference along the line is not proved to differ from 0")
        return "polynomial"
    if method == "countable":
        stored = keys(document, {"method", "x", "y"}, "proof.json")
        _countable(network)
        _defined(network, region)
        x, y = _points(("x", "y"), {"x": stored["x"], "y": stored["y"]}, bundle, size, "proof.json")
        if not (region.contains(x) and region.contains(y)):
            raise Rejected("a point of the proof is outside the region")
        first, second = _value(network, x, x), _value(network, y, y)
        if not ((first.hi < second.lo) | (second.hi < first.lo)).any():
            raise Rejected("the outputs at the two points are not proved to differ")
        return "countable"
    if method == "jump":
        _jump(region, document, bundle, proof)
        return "jump"
    raise Rejected(f"expected method polynomial, countable or jump, got {method!r:.60}")


def _jump(region: Region, document: object, bundle: Bundle, proof: Proof) -> None:
    """Whether f differs between two points by more than K times their distance, K being proved with all jumps frozen."""
    stored = keys(document, {"method", "x", "y", "slopes", "intervals", "steps"}, "proof.json")
    network = proof.network
    _defined(network, region)
    derivation = {"method": "jump", **{name: stored[name] for name in ("slopes", "intervals", "steps")}}
    # Without a region no rule can read the calm network's values, which are not those of a frozen one.
    calm = replace(proof, network=frozen(network), boxes=None, region=None)
    constant = prove_upper(calm, derivation, bundle)
    if calm.failure > 0:
        raise Rejected("expected a deterministic proof of the constant without jumps")
    pair = {"x": stored["x"], "y": stored["y"]}
    reached = lower_bound(network, region, pair, bundle, constant)
    if not reached > constant:
        raise Rejected(f"the points are {reached!r} apart per distance, and {constant!r} needs no jump")


def _polynomial(network: Network) -> None:
    for index in sorted(network.ancestors(network.output)):
        node = network.nodes[index]
        if not network.dependent[index] or index == 0 or node.affine or node.kind in ("Multiply", "MatMul"):
            continue
        if node.kind == "Elementwise" and node["function"] in ("square", "power"):
            continue
        raise Rejected(f"node {index} ({node.kind} {node.name!r}) is not a polynomial")


def _curved(network: Network, x: Floats, direction: Floats) -> bool:
    """Whether `f(x) - 2 f(x + d) + f(x + 2d)` is proved nonzero; the boxes hold the exact points."""
    try:
        with np.errstate(all="ignore"):
            middle = downs(x + direction), ups(x + direction)
            double = 2 * direction
            last = downs(x + double), ups(x + double)
        a, b, c = (_value(network, *ends) for ends in ((x, x), middle, last))
        with np.errstate(all="ignore"):
            low = downs(downs(a.lo + c.lo) - 2 * b.hi)
            high = ups(ups(a.hi + c.hi) - 2 * b.lo)
        return bool(((low > 0) | (high < 0)).any())
    except Rejected:
        return False


def _curved_precisely(network: Network, x: Floats, direction: Floats) -> bool:
    if precise.cost(network) > precise.LIMIT:
        return False
    with ctx.workprec(precise.bits(network)):
        points = [
            np.array([arb(float(a)) + k * arb(float(d)) for a, d in zip(x, direction, strict=True)], dtype=object)
            for k in range(3)
        ]
        a, b, c = (precise.evaluate(network, point).ravel() for point in points)
        return any(bool(d > 0) or bool(d < 0) for d in a - 2 * b + c)


def _countable(network: Network) -> None:
    seen, stack = set(), [network.output]
    while stack:
        index = stack.pop()
        node = network.nodes[index]
        if index == 0:
            raise Rejected("a way from the input to the output avoids every node with countably many values")
        if index in seen or (node.kind == "Discontinuous" and node["operator"] not in COUNTABLE_EXCEPTIONS):
            continue
        seen.add(index)
        stack.extend(node.inputs)


def _defined(network: Network, region: Region) -> None:
    """Refuse operations without a value for every input, unless the box of their operand keeps away from where they
    have none: the argument is about a network that is defined, and so continuous or not, on the whole region.
    """
    boxes = None if region.box is None else Boxes(network, region.box)
    for index in sorted(network.ancestors(network.output)):
        node = network.nodes[index]
        partial = node.kind == "Divide" or (node.kind in ("LayerNorm", "RMSNorm") and not node["eps"] > 0)
        if node.kind == "Elementwise":
            partial = node["function"] in ("log", "sqrt", "reciprocal")
        if not partial or not network.dependent[index]:
            continue  # what depends on constants alone is evaluated with the two points
        if boxes is None:
            raise Rejected(f"node {index} ({node.kind} {node.name!r}) may be undefined somewhere")
        boxes[index]


# ---------------------------------------------------------------------------------------------------- agreement


def _rounded(network: Network, x: Floats) -> Floats:
    """The network's value at a point in float64: the box of each node is replaced by its middle before the next one is
    asked for. Carried on, boxes grow with depth until their middles say nothing of the value.
    """
    boxes = Boxes(network, Box(x, x))
    for index in sorted(network.ancestors(network.output)):
        middle = boxes[index].lo / 2 + boxes[index].hi / 2
        boxes.narrow(index, Box(middle, middle))
    return boxes[network.output].lo.ravel()


def agreement(network: Network, document: object, bundle: Bundle) -> dict[str, Any]:
    """The largest error of the graph's values at the stored inputs, relative to the largest stored output.

    Raises:
        Rejected: the document does not fit the specification.
    """
    stored = keys(document, {"dtype", "pairs"}, "agreement.json")
    if not isinstance(stored["pairs"], list) or not isinstance(stored["dtype"], str):
        raise Rejected("expected agreement.json with a dtype and a list of pairs")
    error = largest = 0.0
    for pair in stored["pairs"]:
        arrays = keys(pair, {"input", "output"}, "a pair")
        x, y = (bundle.array(arrays[k]).astype(np.float64).ravel() for k in ("input", "output"))
        if x.size != network.nodes[0].size or y.size != network.nodes[network.output].size:
            raise Rejected("expected pairs of the network's sizes")
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise Rejected("expected finite pairs")
        error = max(error, float(np.abs(_rounded(network, x) - y).max()))
        largest = max(largest, float(np.abs(y).max()))
    relative = error / largest if largest > 0 else error
    return {"pairs": len(stored["pairs"]), "largest_relative_error": relative}
