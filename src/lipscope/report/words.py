"""The facts in plain sentences. Every sentence is true of the numbers as they are written in it."""

from __future__ import annotations

import math

from lipscope.report.documents import Field
from lipscope.report.facts import Candidate, Facts, Region
from lipscope.report.numbers import about, digits_for, down, power_of_ten, up

NORMS = {"l1": "ℓ₁", "l2": "ℓ₂", "linf": "ℓ∞"}
RULES = {"segment": "segment", "gain": "closed form", "join": "join"}
STATUSES = {
    "certified": ("✓", "certified", "good"),
    "computed": ("○", "computed, not checked", "plain"),
    "no-bound": ("—", "no bound found", "warn"),
    "unbounded": ("∞", "unbounded", "warn"),
    "rejected": ("✕", "rejected", "bad"),
    "damaged": ("✕", "files damaged", "bad"),
    "none": ("·", "needs no proof", "plain"),
}
"""Per status: a mark, a label and a tone, so that colour is never the only sign."""


def badge(status: str, facts: Facts | None = None) -> tuple[str, str, str]:
    """Mark, label and tone of a status; unproved absence of a bound says that nobody checked it."""
    mark, label, tone = STATUSES.get(status, ("?", status, "warn"))
    if facts is not None and status == "unbounded":
        label += ", proved" if facts.verdict.belongs else ", not checked"
    return mark, label, tone


def norm(name: str) -> str:
    """The norm in typeset form."""
    return NORMS.get(name, name)


def output(text: str) -> str:
    """What of the output counts."""
    if text == "all":
        return "all outputs"
    first, _, second = text.partition("-")
    return f"output {first} minus output {second}" if second else f"output {first}"


def region(place: Region, measure: str) -> str:
    """The region, with its extent."""
    if place.kind == "everywhere":
        return "everywhere: all inputs"
    if place.kind == "band":
        return f"everywhere: all inputs, and changes in a band of {place.inputs} frequencies"
    if place.kind == "ball":
        return f"closed {norm(measure)} ball of radius {place.radius!r} around a stored centre"
    if place.lower is None or place.upper is None:
        return "a box"
    (low, low_end), (high_start, high) = place.lower, place.upper
    if low == low_end and high == high_start:
        return f"box: every input from {low!r} to {high!r}"
    return f"box: every input in its own range, all between {low!r} and {high!r}"


def where(place: Region) -> str:
    """The region as part of a sentence."""
    if place.kind == "band":
        return f" that differ in this band of {place.inputs} frequencies only"
    return {"everywhere": "", "box": " in the box", "ball": " in the ball"}.get(place.kind, " in the region")


def meaning(facts: Facts) -> list[str]:
    """What the two numbers mean, for somebody who has to decide something."""
    return [*_upper_meaning(facts), *_lower_meaning(facts)]


def _subject(facts: Facts) -> str:
    first, _, second = facts.output.partition("-")
    if facts.output == "all":
        return "the output"
    return f"the difference of outputs {first} and {second}" if second else f"output {first}"


def _upper_meaning(facts: Facts) -> list[str]:
    status, place, subject = facts.upper_status, where(facts.region), _subject(facts)
    if status == "damaged":
        return ["The files of this bundle are not the ones that were written. Do not use these numbers."]
    if status == "rejected":
        claim = "" if facts.upper is None else f" of {up(facts.upper)}"
        return [f"The checker refused the upper bound{claim}. Do not use it."]
    if status == "unbounded":
        said = f"no finite number bounds how much {subject} can change, relative to the distance of two inputs{place}."
        return [
            "N" + said[1:] if facts.verdict.belongs else f"According to this bundle, which has not been checked, {said}"
        ]
    if facts.upper is None:
        return [
            f"No finite upper bound could be proved for how much {subject} can change{place}. "
            "That is not a proof that there is none."
        ]
    digits = digits_for(facts.ratio)
    bound = "" if status == "certified" else "If the computed bound holds, which the checker has not confirmed: "
    chance = "" if facts.failure == 0 else f" (up to a probability of {up(facts.failure, 2)} that the proof went wrong)"
    if facts.upper == 0:
        sentence = f"no two inputs{place} can change {subject} at all{chance}."
    else:
        sentence = f"no two inputs{place} can change {subject} by more than {up(facts.upper, digits)} times their distance{chance}."
    return [bound + sentence if bound else sentence[0].upper() + sentence[1:]]


def _lower_meaning(facts: Facts) -> list[str]:
    if facts.lower_status == "damaged":
        return []
    if facts.lower_status == "rejected":
        return ["The checker refused the pair of inputs behind the lower bound. Do not use it."]
    if facts.lower == 0:
        return [] if facts.upper == 0 else ["The lower bound is 0: no pair of inputs that shows more is stored."]
    known = f"Two inputs are known that reach {down(facts.lower, digits_for(facts.ratio))} times their distance."
    return [known, f"Distances are measured in the {norm(facts.norm)} norm, on both sides."]


def ratio(facts: Facts) -> str:
    """upper/lower, rounded up."""
    if facts.exact:
        return "exact to " + power_of_ten(-9)
    if facts.ratio is None:
        return "—"
    if facts.ratio == math.inf:
        return "∞ (lower bound 0)" if facts.lower == 0 else f"above {power_of_ten(308)}"
    return up(facts.ratio, digits_for(facts.ratio))


def proof_kind(facts: Facts) -> str:
    """Deterministic, or with what probability."""
    kind = "deterministic" if facts.failure == 0 else f"with probability at least 1 − {up(facts.failure, 2)}"
    return {"certified": kind, "computed": f"{kind}, not checked", "rejected": "refused by the checker"}.get(
        facts.upper_status, "—"
    )


def picture(facts: Facts) -> str:
    """What the picture of the interval shows."""
    certified = facts.upper_status == "certified" and facts.lower_status in ("certified", "none")
    band = (
        "The band is where the constant lies"
        if certified
        else "The band is what the bundle says, as far as it was not refused"
    )
    text = f"Logarithmic axis. {band}."
    if any(candidate.value is not None for candidate in facts.candidates):
        text += " Each diamond is the upper bound of one method; the filled one was chosen, and only that one goes to the checker."
    return text


def outcome(candidate: Candidate, facts: Facts) -> str:
    """Why a method was chosen, beaten or refused."""
    note = "" if not candidate.note else candidate.note
    if candidate.outcome == "refused":
        return note or "no value; it gave no reason"
    if candidate.outcome == "chosen":
        said = "chosen: the smallest bound" if len(facts.candidates) > 1 else "chosen: the only method that was tried"
    elif facts.upper and candidate.value is not None and candidate.value > facts.upper:
        said = f"beaten: {down(candidate.value / facts.upper)} times the chosen bound"
    else:
        said = f"not chosen: {facts.method} was preferred at the same value"
    return f"{said}; {note}" if note else said


def evidence(field: Field | None, rule: str, measure: str) -> str:
    """How a step of the proof is rechecked."""
    if field is None:
        return {"gain": "closed form of the operation's norm", "join": "rule for nodes with several inputs"}.get(
            rule, "—"
        )
    kind, side = field["kind"].text(), field.get("side")
    side_text = "" if side is None else f" on the {side.text()} side"
    sums = "row" if measure == "linf" else "column"
    if kind == "cholesky":
        bounds = field.get("bounds")
        slabs = 0 if bounds is None else max(len(list(bounds.items())) - 1, 0)
        blocks = f", {slabs} slabs" if slabs > 1 else ""
        return f"verified Cholesky factorisation of t²I − G{side_text}{blocks}"
    if kind == "grid":
        grid = " × ".join(str(entry.count()) for entry in field["counts"].items())
        return f"symbol of the convolution on a {grid} frequency grid, M. Riesz’s inequality"
    if kind == "circle":
        return "symbol of the convolution, which goes round, at all its frequencies"
    if kind == "lanczos":
        chance = up(field["failure"].number(), 2)
        return f"Lanczos from {field['starts'].count()} random vectors{side_text}, failure at most {chance}"
    return {
        "sums": f"largest {sums} sum of absolute values",
        "dense": f"largest {sums} sum of the full matrix, with its rounding error",
        "schur": "Schur’s test: √(largest column sum × largest row sum)",
        "branch": "a tree of cells, each one bounded or proved empty in rational arithmetic",
    }.get(kind, kind)


def slack(facts: Facts) -> str | None:
    """Where the factor between the two ends comes from; None where there is no such factor."""
    if facts.ratio is None or not 0 < facts.ratio < math.inf or not facts.layers:
        return None
    total = math.log(facts.ratio)
    if total <= 1e-6:
        return "There is no slack worth speaking of: the two ends agree."
    apart = f"The two ends are a factor of about {about(facts.ratio)} apart. "
    if not facts.chain:
        return apart + "This network has branches, so the norms of its layers are not simply multiplied."
    known = [(layer.upper, layer.lower) for layer in facts.layers if layer.lower and layer.upper >= layer.lower > 0]
    within = sum(math.log(upper) - math.log(lower) for upper, lower in known)
    between = total - within
    if between <= 0.01 * total:
        return apart + "All of it could come from the enclosures of the single layers: tighter norms would help."
    unknown = ", or in layers whose lower norm is not known" if len(known) < len(facts.layers) else ""
    return (
        f"{apart}The enclosures of the single layers account for a factor {about(math.exp(within))} ({within / total:.0%} of it on the log "
        f"scale). The remaining {about(math.exp(between))} lies between the layers{unknown}: their worst directions do not line up, or a "
        "better pair of inputs was not found."
    )


def reading(value: float | None) -> str:
    """A measured or estimated number, to nearest; a dash where there is none."""
    return "–" if value is None else about(value, 3)


def reading_up(value: float | None) -> str:
    """An upper bound, rounded up; a dash where there is none."""
    return "–" if value is None else up(value, 3)
