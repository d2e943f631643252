"""What all tests share: one table of networks, slow obvious oracles, helpers that raise."""

from harness.checked import typechecked

__all__ = ["typechecked"]
