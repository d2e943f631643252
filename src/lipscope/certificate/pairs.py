"""The answer for all differences of two outputs: one result for each, and one for all outputs together."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lipscope.certificate.bundle import write_bundle
from lipscope.certificate.files import new_folder
from lipscope.certificate.result import Result
from lipscope.claims.progress import Progress, silent

MARKER = "pairs.json"
"""The file that says that a folder of bundles is one of these."""


@dataclass(frozen=True)
class Pairs:
    """Intervals for the constants of all differences `output[i] - output[j]`, i < j.

    Attributes:
        whole: the result for all outputs together.
        pairs: those for the differences; fewer than all if the user stopped the search.
        interrupted: whether the user stopped it.
    """

    whole: Result
    pairs: tuple[Result, ...]
    interrupted: bool = False

    @property
    def accepted(self) -> bool:
        """Whether the checker has accepted all that it was asked."""
        return all(r.verdict is None or bool(r.verdict["accepted"]) for r in (self.whole, *self.pairs))

    def save(self, folder: str | Path, *, check: bool = True, progress: Progress = silent) -> Pairs:
        """Write a folder with one bundle for each difference, named `I-J`, one for all outputs, `all`, and the table, `pairs.json`.

        Args:
            folder: where to write it; an older one in its place is replaced.
            check: whether the checker is asked, if it was not yet.
            progress: called with what the checker is doing.

        Returns:
            The same with the statuses that the checker gave.

        Raises:
            ResourceError: the disk is full; nothing is left behind.
            UsageError: the folder cannot be written, or holds something else.
        """
        whole, *pairs = (r.checked(progress) if check and r.verdict is None else r for r in (self.whole, *self.pairs))
        done = Pairs(whole, tuple(pairs), self.interrupted)
        with new_folder(Path(folder), MARKER) as place:
            write_bundle(whole, place / "all")
            for result in pairs:
                write_bundle(result, place / result.problem.claim.output.text)
            (place / MARKER).write_text(json.dumps(done.to_json(), indent=1) + "\n", encoding="utf-8")
        return done

    def to_json(self) -> dict[str, object]:
        """The object that `lipscope bound --output pairs --json` prints: that of all outputs, and the table `pairs`."""
        document = self.whole.to_json()
        claim = document["claim"]
        assert isinstance(claim, dict)
        every = (self.whole, *self.pairs)
        return document | {
            "claim": claim | {"output": "pairs"},
            "pairs": [_row(result) for result in self.pairs],
            "seconds": round(sum(r.seconds for r in every), 4),
            "cpu_seconds": round(sum(r.cpu_seconds for r in every), 4),
            "interrupted": self.interrupted,
        }


def _row(result: Result) -> dict[str, object]:
    return {
        "pair": result.problem.claim.output.text, "lower": result.lower, "lower_status": result.lower_status,
        "upper": result.upper.value, "status": result.upper.status, "proof": result.upper.proof,
        "method": result.upper.method, "reason": result.upper.reason, "seconds": round(result.seconds, 4),
    }  # fmt: skip
