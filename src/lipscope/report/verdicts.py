"""The checker's verdict, and whether it can be about the bundle that it lies in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lipscope.report.documents import Bundle, Field

SCHEMA = "lipscope-verdict/1"
_UPPER = {
    "computed": ("certified", "rejected"),
    "no-bound": ("no-bound", "rejected"),
    "unbounded": ("unbounded", "rejected"),
}
_LOWER = ("certified", "rejected", "none")


@dataclass(frozen=True)
class CheckedStep:
    """What the checker made of one step: its constant, rounded upward, and the time it took."""

    constant: float | None
    seconds: float | None


@dataclass(frozen=True)
class Verdict:
    """What the checker said, as far as it can be about this bundle.

    Attributes:
        present: whether there is a verdict at all.
        contradictions: why it cannot be about this bundle; empty if it may be.
    """

    present: bool = False
    contradictions: tuple[str, ...] = ()
    checker: str = ""
    accepted: bool = False
    upper_status: str = ""
    upper_proved: float | None = None
    upper_reasons: tuple[str, ...] = ()
    lower_status: str = ""
    lower_proved: float | None = None
    lower_reasons: tuple[str, ...] = ()
    agreement_pairs: int | None = None
    agreement_error: float | None = None
    agreement_reason: str | None = None
    steps: Mapping[int, CheckedStep] = field(default_factory=dict)
    seed: str | None = None
    seconds: float | None = None

    @property
    def belongs(self) -> bool:
        """Whether there is a verdict and nothing in it contradicts the bundle."""
        return self.present and not self.contradictions


def read_verdict(bundle: Bundle) -> Verdict:
    """The verdict in a bundle, together with every contradiction between the two.

    A verdict counts only if the files are the listed ones and it speaks of the numbers that the bundle claims.

    Raises:
        UsageError: it does not have the form that the specification gives it.
    """
    document = bundle.verdict
    if document is None:
        return Verdict()
    upper, lower, agreement = document["upper"], document["lower"], document.get("agreement")
    pairs, error = (
        (None, None) if agreement is None else (agreement.get("pairs"), agreement.get("largest_relative_error"))
    )
    reason = None if agreement is None else agreement.get("reason")
    steps, seed = document.get("steps"), document.get("seed")
    return Verdict(
        present=True,
        contradictions=tuple(_contradictions(bundle, document)),
        checker=document["checker"].text(),
        accepted=document["accepted"].flag(),
        upper_status=upper["status"].text(),
        upper_proved=_number(upper.get("proved")),
        upper_reasons=tuple(reason.text() for reason in upper["reasons"].items()),
        lower_status=lower["status"].text(),
        lower_proved=_number(lower.get("proved")),
        lower_reasons=tuple(reason.text() for reason in lower["reasons"].items()),
        agreement_pairs=None if pairs is None else pairs.count(),
        agreement_error=_number(error),
        agreement_reason=None if reason is None else reason.text(),
        steps={
            step["node"].count(): CheckedStep(_number(step.get("constant")), _seconds(step.get("seconds")))
            for step in ([] if steps is None else steps.items())
        },
        seed=None if seed is None else str(seed.value),
        seconds=_seconds(document.get("seconds")),
    )


def _number(number: Field | None) -> float | None:
    return None if number is None else number.number()


def _seconds(number: Field | None) -> float | None:
    return None if number is None else number.finite()


def _contradictions(bundle: Bundle, verdict: Field) -> Iterator[str]:
    yield from bundle.faults
    schema = verdict["schema"].text()
    if schema != SCHEMA:
        yield f"its schema is {schema!r}, not {SCHEMA}"
    named = verdict.get("bundle")
    if named is not None and named.text().removeprefix("sha256:") != bundle.digest:
        yield "it names a bundle with another digest"
    claim = bundle["claim.json"]
    for side, sign in (("upper", 1), ("lower", -1)):
        yield from _about(side, sign, claim[side], verdict[side])
    claimed, status = claim["upper"]["status"].text(), verdict["upper"]["status"].text()
    if status not in _UPPER.get(claimed, ()):
        yield f"it says {status!r} of an upper bound that is claimed as {claimed!r}"
    if verdict["lower"]["status"].text() not in _LOWER:
        yield f"it says {verdict['lower']['status'].text()!r} of the lower bound"
    refused = "rejected" in (status, verdict["lower"]["status"].text())
    if refused and verdict["accepted"].flag():
        yield "it accepts the bundle and rejects one of its claims"
    if claim["lower"]["value"].number() > 0 and verdict["lower"]["status"].text() == "none":
        yield "it knows no lower bound, the bundle claims one"


def _about(side: str, sign: int, claim: Field, verdict: Field) -> Iterator[str]:
    """Whether one side of the verdict speaks of the number that is claimed and proves it if it says so."""
    status, claimed = verdict["status"].text(), _number(claim.get("value"))
    said, proved = _number(verdict.get("value")), _number(verdict.get("proved"))
    excused = said is None and status in ("rejected", "none")
    if said != claimed and not excused:
        yield f"it speaks of the {side} bound {said}, the bundle claims {claimed}"
    if status == "certified" and (proved is None or claimed is None or sign * proved > sign * claimed):
        yield f"it calls the {side} bound {claimed} certified, but proved {proved}"
