"""What a bundle says, gathered from its documents; the statuses come from the checker's verdict alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from lipscope.claims.errors import UsageError
from lipscope.report.documents import Bundle, Field
from lipscope.report.verdicts import Verdict, read_verdict

PREFIX = 4
"""How many nodes stand before the network in the proof of a claim about a band of frequencies."""

NARROW = 1e-9
"""Both ends certified and this close, relatively, is called exact."""


@dataclass(frozen=True)
class Region:
    """The region of a claim: its kind, how many inputs it has, and its extent if it is bounded.

    Of kind `band` is a claim about inputs that differ in a band of frequencies only: `inputs` is then how many it has.
    """

    kind: str
    inputs: int
    lower: tuple[float, float] | None = None
    upper: tuple[float, float] | None = None
    radius: float | None = None


@dataclass(frozen=True)
class Layer:
    """A row of the table of layers. `reach` bounds the map from the input to here, where that is known."""

    number: int
    name: str
    kind: str
    lower: float | None
    upper: float
    tight: bool
    evidence: str
    seconds: float
    reach: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A method that was tried, and what became of it: chosen, beaten or refused."""

    method: str
    value: float | None
    seconds: float
    note: str | None
    outcome: str


@dataclass(frozen=True)
class Step:
    """A step of the proof: what bounds the map up to a node, and what it took the checker."""

    node: int
    name: str
    rule: str
    norm: float | None
    evidence: Field | None
    constant: float | None
    seconds: float | None


@dataclass(frozen=True)
class NetworkNode:
    """A node of the stored network; `parameters` is None where its arrays cannot be read."""

    index: int
    kind: str
    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    parameters: int | None


@dataclass(frozen=True)
class Facts:
    """Everything that the page says about one bundle."""

    folder: Path
    source: str
    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    norm: str
    region: Region
    output: str
    upper: float | None
    upper_claim: str
    upper_layer: str | None
    upper_reason: str | None
    failure: float
    lower: float
    lower_method: str
    method: str
    layers: tuple[Layer, ...]
    candidates: tuple[Candidate, ...]
    steps: tuple[Step, ...]
    proof_method: str
    nodes: tuple[NetworkNode, ...]
    agreement_dtype: str
    agreement_pairs: int
    seconds: float
    cpu_seconds: float
    interrupted: bool
    warnings: tuple[str, ...]
    faults: tuple[str, ...]
    verdict: Verdict
    chain: bool = False

    @property
    def upper_status(self) -> str:
        """certified, computed, no-bound, unbounded, rejected, or damaged where the files are not the listed ones."""
        if self.faults:
            return "damaged"
        return self.verdict.upper_status if self.verdict.belongs else self.upper_claim

    @property
    def lower_status(self) -> str:
        """certified, computed, none (the lower bound 0 needs no proof), rejected or damaged."""
        if self.faults:
            return "damaged"
        if self.verdict.belongs:
            return self.verdict.lower_status
        return "computed" if self.lower > 0 else "none"

    @property
    def trusted_upper(self) -> float | None:
        """The upper bound, None where there is none or where it was refused."""
        return None if self.upper_status in ("rejected", "damaged") else self.upper

    @property
    def ratio(self) -> float | None:
        """upper/lower; None where one of them is missing or was refused, infinite where only the lower one is 0."""
        if self.trusted_upper is None or self.lower_status in ("rejected", "damaged"):
            return None
        if self.lower == 0:
            return 1.0 if self.trusted_upper == 0 else math.inf
        return self.trusted_upper / self.lower

    @property
    def exact(self) -> bool:
        """Whether both ends are certified and agree to 1e-9; both being 0 counts."""
        proved = self.upper_status == "certified" and (
            self.lower_status == "certified" or self.upper == self.lower == 0
        )
        return proved and self.ratio is not None and self.ratio <= 1 + NARROW


def gather(bundle: Bundle) -> Facts:
    """The facts of a bundle.

    Raises:
        UsageError: a document does not have the form that the specification gives it.
    """
    graph, claim, proof = bundle["graph.json"], bundle["claim.json"], bundle["proof.json"]
    result, agreement = bundle["result.json"], bundle["agreement.json"]
    nodes = tuple(_node(bundle, index, node) for index, node in enumerate(graph["nodes"].items()))
    upper, failure = claim["upper"], claim["upper"].get("failure")
    value, node = upper.get("value"), upper.get("node")
    verdict = read_verdict(bundle)
    steps = _steps(proof, nodes, verdict, 0 if claim.get("directions") is None else PREFIX)
    facts = Facts(
        folder=bundle.folder,
        source=graph["source"].text() or "unnamed model",
        model=claim["model"].text(),
        input_shapes=tuple(shape.shape() for shape in graph["input_shapes"].items()),
        output_shapes=tuple(shape.shape() for shape in graph["output_shapes"].items()),
        norm=claim["input_norm"].text(),
        region=_region(bundle, math.prod(nodes[0].shape) if nodes else 0),
        output=claim["output"].text(),
        upper=None if value is None else value.finite(),
        upper_claim=_claimed_status(upper),
        upper_layer=None if node is None else _name(nodes, node.count()),
        upper_reason=_text(upper.get("reason")),
        failure=0.0 if failure is None else failure.finite(),
        lower=claim["lower"]["value"].finite(),
        lower_method=result["lower"]["method"].text(),
        method=result["upper"]["method"].text(),
        layers=tuple(_layer(number, row) for number, row in enumerate(result["layers"].items(), start=1)),
        candidates=_candidates(result),
        steps=steps,
        proof_method=proof["method"].text(),
        nodes=nodes,
        agreement_dtype=agreement["dtype"].text(),
        agreement_pairs=len(list(agreement["pairs"].items())),
        seconds=result["seconds"].finite(),
        cpu_seconds=result["cpu_seconds"].finite(),
        interrupted=result["interrupted"].flag(),
        warnings=tuple(warning.text() for warning in result["warnings"].items()),
        faults=bundle.faults,
        verdict=verdict,
    )
    return _with_reach(facts, proof)


def _claimed_status(upper: Field) -> str:
    """The status that the bundle claims for its upper side; only `computed` goes with a value."""
    status, valued = upper["status"].text(), upper.get("value") is not None
    if status not in ("computed", "no-bound", "unbounded") or valued != (status == "computed"):
        raise UsageError(
            f"expected status computed with a value, or no-bound or unbounded without one, at {upper.where}, "
            f"got {status!r} with{'' if valued else 'out'} a value; write the bundle again with lipscope bound -o"
        )
    return status


def _text(field: Field | None) -> str | None:
    return None if field is None else field.text()


def _number(field: Field | None) -> float | None:
    return None if field is None else field.number()


def _finite(field: Field | None) -> float | None:
    return None if field is None else field.finite()


def _name(nodes: tuple[NetworkNode, ...], index: int) -> str:
    """The layer of a node; the two nodes that stand for the choice of an output are not stored."""
    if index >= len(nodes):
        return "choice of the output"
    return nodes[index].name or f"{nodes[index].kind} (node {index})"


def _node(bundle: Bundle, index: int, node: Field) -> NetworkNode:
    kind, parameters = node["kind"].text(), 0
    for key in node.keys():
        field = node.get(key)
        if field is not None and isinstance(field.value, dict) and "array" in field.value:
            held = bundle.parameters(field)
            parameters = -1 if held is None or parameters < 0 else parameters + held
    for detail in ("function", "operator"):
        if detail in node.keys():
            kind = f"{kind}: {node[detail].text()}"
    return NetworkNode(
        index,
        kind,
        node["name"].text(),
        node["inputs"].shape(),
        node["shape"].shape(),
        None if parameters < 0 else parameters,
    )


def _region(bundle: Bundle, inputs: int) -> Region:
    region, directions = bundle["claim.json"]["region"], bundle["claim.json"].get("directions")
    kind = region["kind"].text()
    if directions is not None:
        return Region("band", 0 if bundle.faults else int(bundle.array(directions["mask"]).sum()))
    if kind == "ball":
        return Region(kind, inputs, radius=region["radius"].number())
    if kind != "box" or bundle.faults:
        return Region(kind, inputs)
    lower, upper = bundle.array(region["lower"]), bundle.array(region["upper"])
    if lower.size == 0 or upper.size == 0:
        return Region(kind, inputs)
    return Region(kind, inputs, (float(lower.min()), float(lower.max())), (float(upper.min()), float(upper.max())))


def _layer(number: int, row: Field) -> Layer:
    return Layer(
        number, row["name"].text(), row["kind"].text(), _finite(row.get("lower")), row["upper"].finite(), row["tight"].flag(),
        row["evidence"].text(), row["seconds"].finite(),
    )  # fmt: skip


def _candidates(result: Field) -> tuple[Candidate, ...]:
    """Every method with its outcome; the one whose value is the upper bound of the result was chosen."""
    chosen, method, found = _number(result["upper"].get("value")), result["upper"]["method"].text(), []
    for entry in result["candidates"].items():
        name, value = entry["method"].text(), _number(entry.get("value"))
        if value is None:
            outcome = "refused"
        else:
            outcome = "chosen" if (name, value) == (method, chosen) else "beaten"
        found.append(Candidate(name, value, entry["seconds"].finite(), _text(entry.get("note")), outcome))
    return tuple(found)


def _steps(proof: Field, nodes: tuple[NetworkNode, ...], verdict: Verdict, offset: int = 0) -> tuple[Step, ...]:
    """The steps of the proof, joined with what the checker made of each, if its verdict belongs to the bundle."""
    stored = proof.get("steps")
    found = []
    for step in [] if stored is None else stored.items():
        index = step["node"].count()
        checked = verdict.steps.get(index) if verdict.belongs else None
        found.append(Step(
            index, _name(nodes, max(index - offset, 0)), step["rule"].text(), _number(step.get("norm")), step.get("evidence"),
            checked.constant if checked else None, checked.seconds if checked else None,
        ))  # fmt: skip
    return tuple(found)


def _with_reach(facts: Facts, proof: Field) -> Facts:
    """Fill in what bounds the map from the input to each layer.

    The checker's constants where its verdict belongs here; otherwise the running product, which is a bound only in a
    chain, where every segment begins at the node where the step before it ended.
    """
    stored = proof.get("steps")
    steps = [] if stored is None else list(stored.items())
    rows = [step for step in facts.steps if step.rule != "join"]
    starts = [step.get("from") for step in steps]
    ends = [0, *(step.node for step in facts.steps)]
    follows = all(start is None or start.count() == end for start, end in zip(starts, ends, strict=False))
    ascending = all(a < b for a, b in pairwise(ends))
    chain = bool(steps) and follows and ascending and len(rows) == len(steps) == len(facts.layers)
    reaches: list[float | None] = [None] * len(facts.layers)
    if len(rows) == len(facts.layers) and all(step.constant is not None for step in rows):
        reaches = [step.constant for step in rows]
    elif chain:
        product = 1.0
        for index, layer in enumerate(facts.layers):
            product *= layer.upper
            reaches[index] = product
    layers = tuple(replace(layer, reach=reach) for layer, reach in zip(facts.layers, reaches, strict=True))
    return replace(facts, layers=layers, chain=chain)
