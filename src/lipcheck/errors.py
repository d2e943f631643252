"""The two ways in which a bundle fails."""

from __future__ import annotations


class CheckError(Exception):
    """Everything that the checker raises on purpose."""


class Unreadable(CheckError):
    """The folder cannot be read as a bundle: nothing in it can be judged (exit code 2)."""


class Rejected(CheckError):
    """A statement of the bundle is not proved (exit code 1)."""
