"""What a bound came to, and the JSON object that says so."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lipcheck
from lipscope.bounds.lower import Witness
from lipscope.bounds.method import Candidate, LayerRow
from lipscope.bounds.problem import Problem
from lipscope.bounds.unbounded import Unbounded
from lipscope.certificate.bundle import write_bundle
from lipscope.claims.claim import Status
from lipscope.claims.errors import InternalError
from lipscope.claims.progress import Progress, silent
from lipscope.claims.regions import Everywhere, Region
from lipscope.network.nodes import Array


@dataclass(frozen=True)
class Upper:
    """The upper side: a proved number, or why there is none.

    Attributes:
        value: no difference quotient on the region exceeds it; None for no-bound and unbounded.
        method: which method found it.
        status: certified (the checker proved it), computed, no-bound or unbounded.
        failure: probability that a randomised proof went wrong; 0 for a deterministic one.
        node: for no-bound and unbounded, the index of the node that causes it.
        layer: its name in the user's model.
        reason: in words, why there is no value, or why the checker refused.
    """

    value: float | None
    method: str
    status: Status
    failure: float = 0.0
    node: int | None = None
    layer: str | None = None
    reason: str | None = None

    @property
    def proof(self) -> str:
        """`deterministic`, or `probability P` with the probability of failure."""
        return "deterministic" if self.failure == 0 else f"probability {self.failure:.3g}"


@dataclass(frozen=True)
class Result:
    """An interval for the Lipschitz constant with everything it rests on.

    Attributes:
        problem: the network and the claim.
        found: the upper side as the search left it.
        candidate: the candidate that `found` came from, with its proof; None if there is none.
        unbounded: the proof that no finite constant exists, if that is the answer.
        witness: the pair of inputs that attains the lower side; None stands for the lower bound 0.
        candidates: all methods that were tried.
        agreement: input and output vectors computed by the source model.
        dtype: in what precision the source model computes.
        seconds: wall time of the search.
        cpu_seconds: processor time of the search.
        interrupted: whether the user stopped the search.
        warnings: what the user should know about the model.
        verdict: the checker's verdict, once it has spoken.
    """

    problem: Problem
    found: Upper
    candidate: Candidate | None
    unbounded: Unbounded | None
    witness: Witness | None
    candidates: tuple[Candidate, ...]
    agreement: tuple[tuple[Array, Array], ...] = ()
    dtype: str = "float64"
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    interrupted: bool = False
    warnings: tuple[str, ...] = ()
    verdict: dict[str, object] | None = None

    def _part(self, side: str) -> dict[str, Any]:
        """The verdict on one side; empty before the checker has spoken."""
        return {} if self.verdict is None else self.verdict[side]  # type: ignore[return-value]

    @property
    def refused(self) -> bool:
        """Whether the checker does not accept the upper side."""
        return self._part("upper").get("status") == "rejected"

    @property
    def refusal(self) -> str:
        """Why, in its words."""
        return "; ".join(self._part("upper")["reasons"])

    @property
    def upper(self) -> Upper:
        """The upper side with the status that the checker gave it."""
        match self._part("upper").get("status"):
            case "certified":
                return replace(self.found, status="certified")
            case "rejected":
                reason = (
                    "the checker refused: "
                    + self.refusal
                    + ". This is a defect of lipscope, not of your model; please report it"
                )
                return replace(
                    self.found, status="computed" if self.found.value is not None else "no-bound", reason=reason
                )
        return self.found

    @property
    def lower_status(self) -> Status:
        """Certified or computed. The bound 0 needs no witness: the checker then says `none`."""
        return "certified" if self._part("lower").get("status") in ("certified", "none") else "computed"

    @property
    def lower(self) -> float:
        """A difference quotient that two points of the region attain."""
        return 0.0 if self.witness is None else self.witness.value

    @property
    def ratio(self) -> float | None:
        """upper/lower, at least 1; None where one of them is missing or the lower bound is 0 and the upper is not."""
        if self.upper.value is None:
            return None
        if self.lower == 0:
            return 1.0 if self.upper.value == 0 else None
        return self.upper.value / self.lower

    @property
    def exact(self) -> bool:
        """Whether both ends are certified and equal to 1e-9."""
        certified = self.upper.status == "certified" and self.lower_status == "certified"
        return certified and self.ratio is not None and self.ratio <= 1 + 1e-9

    @property
    def layers(self) -> tuple[LayerRow, ...]:
        """The table of layers of the method that won."""
        return () if self.candidate is None else self.candidate.layers

    def checked(self, progress: Progress = silent) -> Result:
        """The same result with the statuses that the independent checker gives it, on a temporary bundle."""
        with tempfile.TemporaryDirectory(prefix="lipscope-") as place:
            folder = Path(place) / "bundle"
            write_bundle(self, folder)
            try:
                verdict = lipcheck.check(folder, progress=lambda message: progress(f"checking: {message}", 0.0))
            except lipcheck.Unreadable as error:
                raise InternalError(
                    f"the checker cannot read lipscope's own bundle: {error}; please report it"
                ) from None
        return replace(self, verdict=verdict.document)

    def save(self, folder: str | Path, *, check: bool = True, progress: Progress = silent) -> Result:
        """Write the bundle, with the checker's verdict in it; an older bundle in its place is replaced.

        Args:
            folder: where to write it.
            check: whether the checker is asked, if it was not yet.
            progress: called with what the checker is doing.

        Returns:
            The result with the statuses that the checker gave it.

        Raises:
            ResourceError: the disk is full; nothing is left behind.
            UsageError: the folder cannot be written, or holds something that is not a bundle.
        """
        result = self.checked(progress) if check and self.verdict is None else self
        write_bundle(result, Path(folder))
        return result

    def to_json(self) -> dict[str, object]:
        """The object that `lipscope bound --json` prints."""
        graph, claim = self.problem.stored, self.problem.claim
        return {
            "model": {
                "source": graph.source,
                "digest": graph.digest,
                "inputs": [list(s) for s in graph.input_shapes],
                "outputs": [list(s) for s in graph.output_shapes],
            },
            "claim": {
                "input_norm": claim.norm,
                "output_norm": claim.norm,
                "region": describe_region(claim.region),
                "output": claim.output.text,
                **({} if claim.directions is None else {"directions": claim.directions.words}),
            },
            "lower": {
                "value": self.lower,
                "method": "difference quotient of a pair, found by hill climbing on the Jacobian",
                "status": self.lower_status,
                "witness": "none" if self.witness is None else "witness.json: inputs x and y",
            },
            "upper": {
                "value": self.upper.value,
                "method": self.upper.method,
                "status": self.upper.status,
                "proof": self.upper.proof,
                "node": self.upper.layer,
                "reason": self.upper.reason,
            },
            "exact": self.exact,
            "ratio": self.ratio,
            "seconds": round(self.seconds, 4),
            "cpu_seconds": round(self.cpu_seconds, 4),
            "interrupted": self.interrupted,
            "layers": [_layer(row) for row in self.layers],
            "candidates": [
                {"method": c.method, "value": c.value, "seconds": round(c.seconds, 4), "note": c.note or None}
                for c in self.candidates
            ],
            "warnings": list(self.warnings),
        }


def describe_region(region: Region) -> dict[str, object]:
    """The region in the result: its kind, and its extent in short."""
    if isinstance(region, Everywhere):
        return {"kind": "everywhere"}
    box = region.box()
    description: dict[str, object] = {
        "kind": region.kind, "lower": float(box.lower.min()), "upper": float(box.upper.max()),
    }  # fmt: skip
    if region.kind == "ball":
        description["radius"] = region.radius  # type: ignore[union-attr]
    return description


def _layer(row: LayerRow) -> dict[str, object]:
    return {
        "name": row.name, "kind": row.kind, "lower": row.lower, "upper": row.upper, "tight": row.tight,
        "evidence": row.evidence, "seconds": round(row.seconds, 4),
    }  # fmt: skip
