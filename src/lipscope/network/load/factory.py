"""`package.module:factory`: a model that the user's own code builds."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from lipscope.claims.errors import ModelError, UsageError

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_factory(source: str) -> bool:
    """Whether a text has the form `package.module:factory`."""
    return _FACTORY.fullmatch(source) is not None


def build(source: str) -> nn.Module:
    """The module that a factory returns, or the module that stands under the name.

    Modules are found as Python finds them, and in the current folder. This runs the user's code.

    Raises:
        ModelError: there is no such module or name, it fails, or it does not return an `nn.Module`.
    """
    location, _, name = source.partition(":")
    with _current_folder_importable():
        found: Any = _imported(location)
        for part in name.split("."):
            if not hasattr(found, part):
                raise ModelError(f"expected {name!r} in {location}, found no such name there; check the spelling")
            found = getattr(found, part)
        if isinstance(found, nn.Module):
            return found
        if not callable(found):
            raise ModelError(f"expected a function that returns an nn.Module at {source}, got {type(found).__name__}")
        try:
            model = found()
        except Exception as error:
            raise ModelError(
                f"expected {source}() to return an nn.Module, it raised {type(error).__name__}: {error}; it is called "
                "without arguments"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected {source}() to return an nn.Module, got {type(model).__name__}")
    return model


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _imported(location: str) -> Any:
    try:
        importlib.invalidate_caches()
        return importlib.import_module(location)
    except ModuleNotFoundError as error:
        if error.name is not None and (location == error.name or location.startswith(error.name + ".")):
            raise UsageError(
                f"expected an importable module {location!r}, found none named {error.name!r} from {Path.cwd()}; check the "
                "spelling, or run from the folder that holds it"
            ) from error
        raise ModelError(f"importing {location} failed: {error}; install what it needs") from error
    except Exception as error:
        raise ModelError(f"importing {location} failed with {type(error).__name__}: {error}") from error
