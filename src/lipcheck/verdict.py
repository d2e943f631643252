"""The whole check: read, prove, write `verdict.json`."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from lipcheck.boxes import Boxes
from lipcheck.bundle import Bundle, finite_real, integer, keys, read_bundle, real
from lipcheck.directions import Directions, directed, read_directions
from lipcheck.errors import CheckError, Rejected, Unreadable
from lipcheck.nodes import Network, read_network
from lipcheck.proof import Proof, prove_upper
from lipcheck.region import Region, read_region
from lipcheck.version import __version__
from lipcheck.witness import agreement, lower_bound, prove_unbounded

VERSION = f"lipcheck {__version__}"
SCHEMA = "lipscope-verdict/1"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Verdict:
    """The answer of a check.

    Attributes:
        accepted: every claim of the bundle is proved.
        upper, lower: the two parts, as in `verdict.json`.
        document: all of `verdict.json`.
    """

    accepted: bool
    upper: dict[str, Any]
    lower: dict[str, Any]
    document: dict[str, Any]

    @property
    def reasons(self) -> list[str]:
        """Why it was not accepted."""
        return [*self.upper["reasons"], *self.lower["reasons"]]


@dataclass
class _Entropy:
    """Random numbers from the operating system's entropy, drawn only if asked for."""

    seed: int | None = None
    generator: np.random.Generator | None = None

    def __call__(self) -> np.random.Generator:
        if self.generator is None:
            self.seed = secrets.randbits(128)
            self.generator = np.random.default_rng(np.random.SeedSequence(self.seed))
        return self.generator


@dataclass(frozen=True)
class _Claim:
    """`claim.json`, read."""

    network: Network
    region: Region
    status: str
    value: float
    failure: float
    lower: float
    directions: Directions | None = None


@dataclass
class _Result:
    """What was found so far."""

    upper: dict[str, Any] = field(default_factory=lambda: _part("rejected"))
    lower: dict[str, Any] = field(default_factory=lambda: _part("rejected"))
    agreement: dict[str, Any] | None = None
    steps: list[dict[str, Any]] = field(default_factory=list)


def _part(status: str, value: float | None = None) -> dict[str, Any]:
    return {"status": status, "value": _hex(value), "proved": None, "reasons": []}


def _hex(value: float | None) -> dict[str, str] | None:
    return None if value is None else {"float": float(value).hex()}


def _read_claim(bundle: Bundle) -> _Claim:
    network = read_network(bundle)
    try:
        names = {"model", "input_norm", "output_norm", "region", "output", "upper", "lower"}
        stored = bundle.documents["claim.json"]
        optional = {"directions"} & set(stored) if isinstance(stored, dict) else set()
        claim = keys(stored, names | optional, "claim.json")
        norm = claim["input_norm"]
        if norm not in ("l1", "l2", "linf") or claim["output_norm"] != norm:
            raise Rejected("expected one of the norms l1, l2, linf for input and output")
        region = read_region(claim["region"], norm, network.nodes[0].size, bundle)
        upper = keys(claim["upper"], {"status", "value", "failure", "node", "reason"}, "claim.upper")
        lower = finite_real(keys(claim["lower"], {"value"}, "claim.lower")["value"], "lower bound")
        status = upper["status"]
        if status not in ("computed", "no-bound", "unbounded"):
            raise Rejected(f"expected status computed, no-bound or unbounded, got {status!r:.40}")
        failure = 0.0 if upper["failure"] is None and status != "computed" else real(upper["failure"], "failure")
        if not 0 <= failure < 1:
            raise Rejected(f"expected a probability of failure in [0, 1), got {failure}")
        if lower < 0:
            raise Rejected(f"expected a lower bound >= 0, got {lower}")
        selected = network.select(claim["output"])
        value = math.inf
        if status == "computed":
            value = finite_real(upper["value"], "upper bound")
            if value < 0:
                raise Rejected(f"expected an upper bound >= 0, got {value}")
            if upper["node"] is not None:
                integer(upper["node"], "claim.upper.node", 0, len(selected.nodes) - 1)
        else:
            if upper["value"] is not None or not isinstance(upper["reason"], str):
                raise Rejected(f"expected no value but a reason for status {status}")
            integer(upper["node"], "claim.upper.node", 0, len(selected.nodes) - 1)
    except Rejected as error:
        raise Unreadable(f"claim.json: {error}") from None
    if claim["model"] != network.digest:
        raise Rejected(f"the claim is about model {claim['model']!r:.90}, the graph is {network.digest}")
    directions = None
    if "directions" in claim:
        directions = read_directions(claim["directions"], network.nodes[0].size, bundle)
        if norm != "l2" or region.box is not None or lower != 0 or status == "unbounded":
            raise Rejected("expected directions in a claim in l2 about everywhere, with lower bound 0")
        selected = directed(selected, directions)
    return _Claim(selected, region, status, value, failure, lower, directions)


def _upper(claim: _Claim, bundle: Bundle, result: _Result, entropy: _Entropy, progress: Progress) -> None:
    if claim.status == "no-bound":
        result.upper = {**_part("no-bound"), "failure": _hex(0.0)}
        return
    value = claim.value if claim.status == "computed" else None
    result.upper = {**_part("rejected", value), "failure": _hex(claim.failure)}
    boxes = None if claim.region.box is None else Boxes(claim.network, claim.region.box)
    proof = Proof(
        claim.network, claim.region.norm, boxes, entropy, progress, claim.region, steps=result.steps,
        directions=claim.directions,
    )  # fmt: skip
    if "proof.json" not in bundle.documents:
        raise Rejected("the upper bound has no proof.json")
    document = bundle.documents["proof.json"]
    if claim.status == "unbounded":
        prove_unbounded(claim.region, document, bundle, proof)
        result.upper["status"] = "unbounded"
        return
    proved = prove_upper(proof, document, bundle)
    result.upper["proved"] = _hex(proved)
    if not proved <= claim.value:
        raise Rejected(f"the proof shows {proved!r}, the claim is {claim.value!r}")
    if not proof.failure <= Fraction(claim.failure):
        raise Rejected(
            f"the proof may fail with probability {float(proof.failure)!r}, the claim says {claim.failure!r}"
        )
    result.upper["status"] = "certified"


def _lower(claim: _Claim, bundle: Bundle, result: _Result) -> None:
    result.lower = _part("rejected", claim.lower)
    witness = bundle.documents.get("witness.json", {})
    if claim.directions is not None and witness != {}:
        raise Rejected("expected no witness: a claim about directions has no lower bound")
    if claim.lower == 0 and witness == {}:
        result.lower["status"] = "none"
        return
    proved = lower_bound(claim.network, claim.region, witness, bundle, claim.lower)
    result.lower["proved"] = _hex(proved)
    if not proved >= claim.lower:
        raise Rejected(f"the witness attains {proved!r}, the claim is {claim.lower!r}")
    result.lower["status"] = "certified"


def _guarded(part: dict[str, Any], failure: BaseException) -> None:
    text = str(failure) if isinstance(failure, CheckError) else f"{type(failure).__name__}: {failure}"
    part["status"] = "rejected"
    part["reasons"] = [*part["reasons"], text]


_FAULTS = (CheckError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, MemoryError, RecursionError)
"""What a hostile bundle may provoke past the checks: all of it means that nothing was proved."""


def _prove(path: Path, result: _Result, entropy: _Entropy, progress: Progress) -> None:
    progress("files")
    try:
        bundle = read_bundle(path)
        progress("network and claim")
        claim = _read_claim(bundle)
    except Rejected as error:
        _guarded(result.upper, error)
        _guarded(result.lower, error)
        return
    try:
        _upper(claim, bundle, result, entropy, progress)
    except _FAULTS as error:
        _guarded(result.upper, error)
    progress("witness")
    try:
        _lower(claim, bundle, result)
    except _FAULTS as error:
        _guarded(result.lower, error)
    if "agreement.json" in bundle.documents:
        progress("agreement")
        original = read_network(bundle)
        try:
            result.agreement = agreement(original, bundle.documents["agreement.json"], bundle)
        except _FAULTS as error:
            result.agreement = {"pairs": 0, "largest_relative_error": None, "reason": str(error)}


def check(path: str | os.PathLike[str], progress: Progress | None = None) -> Verdict:
    """Check a bundle and write `verdict.json` into it (if the folder can be written to).

    Raises:
        Unreadable: the folder cannot be read as a bundle.
    """
    began = time.perf_counter()
    result, entropy = _Result(), _Entropy()
    root = Path(path)
    _prove(root, result, entropy, progress or (lambda message: None))
    accepted = result.upper["status"] != "rejected" and result.lower["status"] != "rejected"
    document = {
        "schema": SCHEMA, "checker": VERSION, "bundle": _digest(root / "bundle.json"), "accepted": accepted, "upper": result.upper, "lower": result.lower,
        "agreement": result.agreement, "steps": result.steps, "seed": entropy.seed,
        "seconds": round(time.perf_counter() - began, 6),
    }  # fmt: skip
    _write(root / "verdict.json", document)
    return Verdict(accepted, result.upper, result.lower, document)


def _digest(path: Path) -> str | None:
    """sha256 of `bundle.json`, which lists the digests of everything else: it says which bundle the verdict is about."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _write(path: Path, document: dict[str, Any]) -> None:
    """Write the file as a whole or not at all; a folder that cannot be written to keeps no verdict."""
    text = json.dumps(document, indent=1) + "\n"
    try:
        handle, name = tempfile.mkstemp(prefix=".verdict", dir=path.parent)
    except OSError:
        return
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
