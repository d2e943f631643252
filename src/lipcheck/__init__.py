"""The independent checker of lipscope bundles: numpy and python-flint, nothing of lipscope.

`check(path)` reads a bundle, recomputes every number that its claims rest on and returns a `Verdict`.
The specification is `docs/certificate.md`.
"""

from __future__ import annotations

from lipcheck.errors import CheckError, Rejected, Unreadable
from lipcheck.verdict import Verdict, check
from lipcheck.version import __version__

__all__ = ["CheckError", "Rejected", "Unreadable", "Verdict", "__version__", "check"]
