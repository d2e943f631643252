"""The proof of the upper bound: intervals, slopes and steps, each recomputed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from lipcheck import functions
from lipcheck.absolute import prove_absolute
from lipcheck.boxes import Box, Boxes
from lipcheck.branch import prove_branch
from lipcheck.branch_network import Split
from lipcheck.bundle import Bundle, integer, keys, real
from lipcheck.cover import prove_cover
from lipcheck.directions import PREFIX, Directions, amplification, error
from lipcheck.errors import Rejected
from lipcheck.gains import gain, join
from lipcheck.grid import prove_grid
from lipcheck.jacobian import prove_jacobian
from lipcheck.lanczos import prove_lanczos
from lipcheck.narrow import Narrowing
from lipcheck.nodes import Network
from lipcheck.norms import prove_cholesky, prove_dense, prove_schur, prove_sums
from lipcheck.quadratic import prove_quadratic
from lipcheck.quadratic_sums import prove_quadratic_sums
from lipcheck.region import Region
from lipcheck.rounding import Floats, up
from lipcheck.segments import Operator, build
from lipcheck.torus import prove_torus

EVIDENCE: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sums": (("l1", "linf"), ()),
    "dense": (("l1", "linf"), ()),
    "schur": (("l2",), ()),
    "cholesky": (("l2",), ("side", "axis", "bounds")),
    "grid": (("l2",), ("counts",)),
    "circle": (("l2",), ()),
    "lanczos": (("l2",), ("side", "starts", "steps", "failure")),
}
"""For each kind of evidence the norms it speaks of and its fields."""

RULES = ("segment", "quadratic", "branch", "absolute", "jacobian", "gain", "join")

DIRECTED = ("segment", "quadratic", "gain", "join")
"""The rules that may be used where a claim has directions: the rounding of the basis is accounted for in these alone."""


@dataclass
class Proof:
    """The state of a check: constants of nodes that have one, and what was drawn.

    Attributes:
        boxes: boxes over the region, or None where the region is everywhere.
        region: the region, where narrowed boxes need its shape.
        generator: random numbers from the operating system's entropy, made when first needed.
        directions: the band that the claim is about; the network then begins with its basis.
    """

    network: Network
    norm: str
    boxes: Boxes | None
    generator: Callable[[], np.random.Generator]
    progress: Callable[[str], None]
    region: Region | None = None
    slopes: dict[int, tuple[Floats, Floats]] = field(default_factory=dict)
    constants: dict[int, float] = field(default_factory=dict)
    failure: Fraction = Fraction(0)
    steps: list[dict[str, Any]] = field(default_factory=list)
    directions: Directions | None = None

    def box(self, index: int) -> Box:
        """The box of a node.

        Raises:
            Rejected: the region is everywhere, or see `Boxes`.
        """
        if self.boxes is None:
            raise Rejected("this rule needs a bounded region, the claim is about everywhere")
        return self.boxes[index]

    def constant(self, index: int) -> float:
        """K of a node: 1 of the input, 0 of what depends on constants alone.

        Raises:
            Rejected: no step has proved one yet.
        """
        if not self.network.dependent[index]:
            return 0.0
        if index == 0:
            return 1.0
        if index not in self.constants:
            raise Rejected(f"no earlier step gives a constant for node {index}")
        return self.constants[index]

    def step(self, source: int, index: int, t: float, rule: str) -> float:
        """K of a node that is reached from `source` with constant t; the basis of a band adds its own rounding."""
        start = self.constant(source)
        if self.directions is not None and source == 0:
            t = up(t + up(amplification(self.network, self.slopes, index, rule) * error(self.directions)))
        return 0.0 if t == 0 or start == 0 else up(t * start)


def _numbered(document: object, network: Network, what: str) -> list[tuple[int, object]]:
    """The entries of an object whose keys are node numbers, in order."""
    if not isinstance(document, dict):
        raise Rejected(f"expected {what} as an object")
    found = []
    for key, value in document.items():
        if not key.isascii() or not key.isdigit() or len(key) > 9 or str(int(key)) != key:
            raise Rejected(f"expected the keys of {what} to be node numbers, got {key!r:.40}")
        if int(key) >= len(network.nodes):
            raise Rejected(f"{what} has an entry for node {key}, there is no such node")
        found.append((int(key), value))
    return sorted(found, key=lambda pair: pair[0])


def _entries(document: object, network: Network, what: str) -> list[tuple[int, dict[str, Any]]]:
    pairs = _numbered(document, network, what)
    return [(index, keys(value, {"lower", "upper"}, f"{what} of node {index}")) for index, value in pairs]


def _narrow(proof: Proof, stored: dict[str, Any], bundle: Bundle) -> None:
    """Narrow the boxes by the linear bounds of the bundle, if it has some."""
    if "narrowed" not in stored:
        return
    if proof.boxes is None or proof.region is None:
        raise Rejected("expected no narrowed nodes where the region is everywhere")
    lines = dict(_numbered(stored["lines"], proof.network, "lines"))
    narrowed = dict(_numbered(stored["narrowed"], proof.network, "narrowed"))
    Narrowing(proof.network, proof.boxes, proof.region, bundle).run(lines, narrowed)


def _pair(value: dict[str, Any], shape: tuple[int, ...], bundle: Bundle, what: str) -> tuple[Floats, Floats]:
    lower = bundle.floats(value["lower"], shape, f"lower {what}")
    upper = bundle.floats(value["upper"], shape, f"upper {what}")
    if not (lower <= upper).all():
        raise Rejected(f"expected lower <= upper in {what}")
    return lower, upper


def _read_intervals(proof: Proof, document: object, bundle: Bundle) -> None:
    for index, value in _entries(document, proof.network, "intervals"):
        node = proof.network.nodes[index]
        lower, upper = _pair(value, node.shape, bundle, f"interval of node {index}")
        if proof.boxes is None:
            raise Rejected("expected no intervals where the region is everywhere")
        own = proof.box(index)
        outside = (own.lo < lower) | (own.hi > upper)
        if outside.any():
            raise Rejected(
                f"the stored interval of node {index} ({node.kind} {node.name!r}) is not proved: {int(outside.sum())} "
                f"of {outside.size} entries do not contain what was computed, by up to "
                f"{float(np.maximum(lower - own.lo, own.hi - upper).max()):.3g}"
            )


def _read_slopes(proof: Proof, document: object, bundle: Bundle) -> None:
    for index, value in _entries(document, proof.network, "slopes"):
        node = proof.network.nodes[index]
        if node.kind != "Elementwise":
            raise Rejected(f"slopes belong to Elementwise nodes, node {index} is {node.kind}")
        lower, upper = _pair(value, node.shape, bundle, f"slopes of node {index}")
        if proof.boxes is None:
            ends = np.full(node.shape, -np.inf), np.full(node.shape, np.inf)
        else:
            operand = proof.box(node.inputs[0])
            ends = operand.lo, operand.hi
        own = functions.slopes(node, *ends)
        outside = (own[0] < lower) | (own[1] > upper)
        if outside.any():
            excess = np.maximum(np.where(outside, lower - own[0], -np.inf), np.where(outside, own[1] - upper, -np.inf))
            raise Rejected(
                f"the stored slopes of node {index} ({node['function']} {node.name!r}) are not proved: "
                f"{int(outside.sum())} of {outside.size} entries are too narrow, by up to {float(excess.max()):.3g}"
            )
        proof.slopes[index] = lower, upper


def _evidence(proof: Proof, operator: Operator, t: float, evidence: object) -> None:
    kind = evidence.get("kind") if isinstance(evidence, dict) else None
    if not isinstance(kind, str) or kind not in EVIDENCE:
        raise Rejected(f"expected a known kind of evidence, got {kind!r:.60}")
    norms, fields = EVIDENCE[kind]
    stored = keys(evidence, {"kind", *fields}, f"evidence {kind}")
    if proof.norm not in norms:
        raise Rejected(f"evidence {kind} says nothing about {proof.norm}")
    if kind == "sums":
        prove_sums(operator, proof.norm, t)
    elif kind == "dense":
        prove_dense(operator, proof.norm, t)
    elif kind == "schur":
        prove_schur(operator, t)
    elif kind == "cholesky":
        prove_cholesky(operator, t, stored)
    elif kind in ("grid", "circle"):
        prove_grid(operator, t, stored)
    else:
        proof.failure += Fraction(prove_lanczos(operator, t, stored, proof.generator()))


def _from(proof: Proof, index: int, step: dict[str, Any]) -> tuple[int, float]:
    """Where a step begins, a node that has a constant, and its norm, finite and >= 0."""
    source, t = integer(step["from"], "from", 0, index - 1), real(step["norm"], "norm")
    proof.constant(source)
    if not 0 <= t < math.inf:
        raise Rejected(f"expected a finite norm >= 0, got {t}")
    return source, t


def _segment(proof: Proof, index: int, step: dict[str, Any]) -> float:
    source, t = _from(proof, index, step)
    operator = build(proof.network, proof.slopes, source, index)
    _evidence(proof, operator, t, step["evidence"])
    return proof.step(source, index, t, "segment")


def _quadratic(proof: Proof, index: int, step: dict[str, Any], bundle: Bundle) -> float:
    source, t = _from(proof, index, step)
    if proof.norm == "l2":
        where = (proof.network, proof.slopes, source, index, t, step["evidence"], bundle)
        if not (isinstance(step["evidence"], dict) and step["evidence"].get("kind") == "torus"):
            prove_quadratic(*where)
        elif proof.directions is None:
            prove_torus(*where)
        else:
            raise Rejected("evidence torus says nothing about directions")
    elif proof.directions is not None:
        raise Rejected(f"rule quadratic says nothing about directions in {proof.norm}")
    else:
        prove_quadratic_sums(proof.network, proof.slopes, source, index, proof.norm, t, step["evidence"], bundle)
    return proof.step(source, index, t, "quadratic")


def _branch(proof: Proof, index: int, step: dict[str, Any], bundle: Bundle) -> float:
    source, t = _from(proof, index, step)
    if source != 0 or index != proof.network.output or proof.directions is not None or proof.region is None:
        raise Rejected("rule branch speaks of the values of the whole network, in all directions")
    stored = keys(step["evidence"], {"kind", "tree", "multipliers"}, "evidence branch")
    if stored["kind"] != "branch":
        raise Rejected("expected evidence of kind branch")
    size = bundle.array(stored["multipliers"]).size
    values = bundle.floats(stored["multipliers"], (size,), "multipliers of the cells")
    prove_branch(Split(proof.network, proof.region, proof.boxes), proof.norm, t, stored["tree"], values)
    return t


def _entrywise(proof: Proof, index: int, step: dict[str, Any], bundle: Bundle) -> float:
    """Rules `absolute` and `jacobian`."""
    source, t = _from(proof, index, step)
    if proof.directions is not None:
        raise Rejected(f"rule {step['rule']} says nothing about directions")
    where = (source, index, proof.norm, t, step["evidence"], bundle)
    if step["rule"] == "absolute":
        prove_absolute(proof.network, proof.slopes, proof.boxes, *where)
    else:
        prove_jacobian(proof.network, proof.slopes, *where)
    return proof.step(source, index, t, step["rule"])


def _gain(proof: Proof, index: int) -> float:
    node = proof.network.nodes[index]
    if node.affine or len(node.inputs) != 1:
        raise Rejected(f"rule gain is for nodes with one input that are not affine, got {node.kind}")
    before = proof.constant(node.inputs[0])
    operand = proof.network.nodes[node.inputs[0]].shape
    g = gain(node, operand, proof.norm, proof.boxes is None, lambda i: proof.box(node.inputs[i]))
    return 0.0 if g == 0 or before == 0 else up(g * before)


def _join(proof: Proof, index: int) -> float:
    node = proof.network.nodes[index]
    constants = [proof.constant(i) for i in node.inputs]
    return join(node, proof.norm, constants, lambda i: proof.box(node.inputs[i]))


def _step(proof: Proof, step: object, before: int, bundle: Bundle) -> int:
    rule = step.get("rule") if isinstance(step, dict) else None
    if rule not in RULES:
        raise Rejected(f"expected one of the rules {', '.join(RULES)}, got {rule!r:.60}")
    names = {"node", "rule"} | ({"from", "norm", "evidence"} if rule not in ("gain", "join") else set())
    stored = keys(step, names, f"step with rule {rule}")
    index = integer(stored["node"], "node", 1, len(proof.network.nodes) - 1)
    if index <= before:
        raise Rejected(f"expected steps in topological order, got node {index} after node {before}")
    if proof.directions is not None and (index < PREFIX or rule not in DIRECTED):
        raise Rejected(f"directions allow the rules {', '.join(DIRECTED)}, to nodes from {PREFIX} on")
    node = proof.network.nodes[index]
    proof.progress(f"{rule} to node {index} ({node.kind} {node.name!r})")
    began = time.perf_counter()
    try:
        if rule == "segment":
            value = _segment(proof, index, stored)
        elif rule == "quadratic":
            value = _quadratic(proof, index, stored, bundle)
        elif rule == "branch":
            value = _branch(proof, index, stored, bundle)
        elif rule in ("absolute", "jacobian"):
            value = _entrywise(proof, index, stored, bundle)
        else:
            value = _gain(proof, index) if rule == "gain" else _join(proof, index)
        if not 0 <= value < math.inf:
            raise Rejected(f"the constant is {value}")
    except Rejected as error:
        raise Rejected(f"step {rule} to node {index} ({node.kind} {node.name!r}): {error}") from None
    proof.constants[index] = value
    seconds = round(time.perf_counter() - began, 6)
    proof.steps.append({"node": index, "rule": rule, "constant": {"float": value.hex()}, "seconds": seconds})
    return index


def _settle(proof: Proof) -> None:
    """Find what is constant on the region: jumps whose box is one point, and what depends on these and constants alone.

    What is constant has K = 0, which would hide that it has no value at all, so all of it is evaluated.

    Raises:
        Rejected: something that depends on constants alone is not defined or not finite.
    """
    network = proof.network
    reached = network.ancestors(network.output)
    dependent: list[bool] = []
    for index, node in enumerate(network.nodes):
        live = index == 0 or any(dependent[i] for i in node.inputs)
        if live and node.kind == "Discontinuous" and index in reached:
            live = not _is_point(proof, index)
        dependent.append(live)
    origin = np.zeros(network.nodes[0].size)
    boxes = Boxes(network, Box(origin, origin)) if proof.boxes is None else proof.boxes
    for index in sorted(reached):
        if not dependent[index]:
            boxes[index]
    proof.network = replace(network, dependent=tuple(dependent))


def _is_point(proof: Proof, index: int) -> bool:
    """Whether a node is proved to have one value on the whole region."""
    if proof.boxes is None:
        return False
    try:
        box = proof.boxes[index]
    except Rejected:
        return False
    return bool((box.lo == box.hi).all())


def prove_upper(proof: Proof, document: object, bundle: Bundle) -> float:
    """Go through the proof; the constant of the output.

    Raises:
        Rejected: a step is not proved; the message names it.
    """
    if isinstance(document, dict) and "cover" in document:
        return _cover(proof, document, bundle)
    optional = {"lines", "narrowed"} if isinstance(document, dict) and "narrowed" in document else set()
    stored = keys(document, {"method", "intervals", "slopes", "steps"} | optional, "proof.json")
    if not isinstance(stored["method"], str) or not isinstance(stored["steps"], list):
        raise Rejected("expected proof.json with a method and a list of steps")
    proof.progress("intervals and slopes")
    _narrow(proof, stored, bundle)
    _read_intervals(proof, stored["intervals"], bundle)
    _read_slopes(proof, stored["slopes"], bundle)
    _settle(proof)
    before = 0
    for step in stored["steps"]:
        before = _step(proof, step, before, bundle)
    return proof.constant(proof.network.output)


def _cover(proof: Proof, document: object, bundle: Bundle) -> float:
    """The largest constant of the boxes of a cover, each proved on its own box, without what is known of others.

    Raises:
        Rejected: see `prove_cover`.
    """
    region = proof.region
    if region is None or region.box is None or proof.directions is not None:
        raise Rejected("a cover is for bounded regions, in all directions")

    def prove(box: Box, leaf: object) -> float:
        own = Proof(
            proof.network, proof.norm, Boxes(proof.network, box), proof.generator, lambda message: None,
            Region("box", region.norm, box),
        )  # fmt: skip
        constant = prove_upper(own, leaf, bundle)
        proof.failure += own.failure
        return constant

    began = time.perf_counter()
    worst = prove_cover(document, Box(region.box.lo.reshape(-1), region.box.hi.reshape(-1)), prove, proof.progress)
    seconds = round(time.perf_counter() - began, 6)
    output = proof.network.output
    proof.steps.append({"node": output, "rule": "cover", "constant": {"float": worst.hex()}, "seconds": seconds})
    return worst
