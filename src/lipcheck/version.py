"""The version of lipscope and lipcheck."""

from __future__ import annotations

__version__ = "0.1.0"
