"""`python -m lipcheck BUNDLE [--json] [--quiet]`: exit code 0 accepted, 1 rejected, 2 unreadable."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from lipcheck.errors import Unreadable
from lipcheck.verdict import Verdict, check


def _number(part: dict[str, Any], key: str) -> str:
    stored = part.get(key)
    return "-" if stored is None else repr(float.fromhex(stored["float"]))


def _words(verdict: Verdict) -> str:
    lines = ["accepted: every claim of this bundle is proved" if verdict.accepted else "rejected"]
    for name, part in (("upper bound", verdict.upper), ("lower bound", verdict.lower)):
        text = f"  {name}: {part['status']}"
        if part["value"] is not None:
            text += f"; claimed {_number(part, 'value')}, proved {_number(part, 'proved')}"
        if name == "upper bound" and _number(part, "failure") not in ("-", "0.0"):
            text += f", except with probability {_number(part, 'failure')}"
        lines += [text, *(f"    {reason}" for reason in part["reasons"])]
    found = verdict.document["agreement"]
    if found is not None and found["largest_relative_error"] is not None:
        lines.append(
            f"  agreement: {found['pairs']} inputs, largest error {found['largest_relative_error']:.3g} (evidence)"
        )
    lines.append(f"  seconds: {verdict.document['seconds']}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="lipcheck", description="Check a lipscope bundle.")
    parser.add_argument("bundle", help="folder to check")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    options = parser.parse_args(arguments)

    def progress(message: str) -> None:
        sys.stderr.write(message + "\n")

    try:
        verdict = check(options.bundle, None if options.quiet else progress)
    except Unreadable as error:
        sys.stderr.write(f"cannot be read as a bundle: {error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"cannot be read: {error}\n")
        return 2
    sys.stdout.write((json.dumps(verdict.document) if options.json else _words(verdict)) + "\n")
    return 0 if verdict.accepted else 1


if __name__ == "__main__":
    sys.exit(main())
