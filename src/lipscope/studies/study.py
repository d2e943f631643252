"""What a study is, how one is found by its name, and how its settings are changed from outside.

A study is a folder of this package whose `__init__.py` exposes `STUDY`. Its name is the folder's with dashes. Folders
are listed without importing them, so that a study with a missing dependency stands in nobody's way.
"""

from __future__ import annotations

import json
import math
import pkgutil
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from importlib import import_module
from importlib.resources import files
from typing import Any, Generic, TypeVar

from lipscope.claims.errors import Interrupted, UsageError
from lipscope.claims.progress import Progress, silent

Figures = Mapping[str, Any]
"""What was measured: names to numbers, texts, lists or further mappings, as JSON has them."""

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Outcome:
    """What a run of a study came to.

    Attributes:
        claim: the claim in one sentence.
        holds: whether it held; None if the run cannot tell, by its settings or because it was stopped.
        figures: what was measured.
        settings: all settings of the run.
        seconds: wall time.
        interrupted: whether the user stopped it; the figures are then those that were reached.
    """

    claim: str
    holds: bool | None
    figures: Figures
    settings: Mapping[str, Any]
    seconds: float = 0.0
    interrupted: bool = False

    def to_json(self, study: str) -> dict[str, object]:
        """The object that the command line prints; numbers that are not finite are null."""
        return {
            "study": study,
            "claim": self.claim,
            "holds": self.holds,
            "figures": _plain(self.figures),
            "settings": _plain(self.settings),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Study(Generic[Settings]):
    """A claim, and the small experiment that it is put to.

    Attributes:
        name: of its folder, with dashes.
        claim: one sentence that the experiment can contradict.
        settings: a frozen dataclass instance with all settings at their defaults: seeds, sizes, steps, tolerance.
        measure: the experiment. It returns the figures. Stopped by the user it may raise `Interrupted` with the
            figures so far as its result. It leaves global random state, flags and files as they were.
        judge: whether figures measured with these settings bear the claim out; None where they cannot tell. It must
            also be able to read its figures back from JSON, where tuples are lists and keys are texts.
    """

    name: str
    claim: str
    settings: Settings
    measure: Callable[[Settings, Progress], Figures]
    judge: Callable[[Figures, Settings], bool | None]

    def __post_init__(self) -> None:
        if not is_dataclass(self.settings) or isinstance(self.settings, type):
            raise TypeError(f"expected an instance of a dataclass as settings of {self.name!r}, got {self.settings!r}")

    def run(self, settings: Settings | None = None, progress: Progress = silent) -> Outcome:
        """Measure and judge.

        Args:
            settings: the defaults if None.
            progress: called with what is being done and the share that is done.
        """
        chosen = self.settings if settings is None else settings
        began, figures, interrupted = time.monotonic(), typing.cast("Figures", {}), False
        try:
            figures = self.measure(chosen, progress)
        except Interrupted as stopped:
            if not isinstance(stopped.result, Mapping):
                raise
            figures, interrupted = stopped.result, True
        holds = None if interrupted else self.judge(figures, chosen)
        return Outcome(
            self.claim, holds, figures, asdict(chosen), time.monotonic() - began, interrupted  # type: ignore[call-overload]
        )  # fmt: skip

    def read(self, changes: Sequence[str]) -> Settings:
        """The settings with changes such as `steps=100` or `widths=2,10,40`, read by the types of the fields.

        Raises:
            UsageError: a change has no `=`, names no setting, or its value does not fit.
        """
        hints = typing.get_type_hints(type(self.settings))
        names = [field.name for field in fields(self.settings)]  # type: ignore[arg-type]
        values: dict[str, object] = {}
        for change in changes:
            key, equals, text = change.partition("=")
            if not equals or key not in names:
                raise UsageError(f"expected KEY=VALUE with KEY out of {', '.join(names)}, got {change!r}")
            values[key] = _read(key, text, hints[key])
        return replace(self.settings, **values)  # type: ignore[type-var]

    def restore(self, stored: Mapping[str, Any]) -> Settings:
        """The settings that a stored result lists, lists turned back into tuples."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
        return replace(self.settings, **values)  # type: ignore[type-var]


def names() -> list[str]:
    """The names of all studies, in order; none of them is imported."""
    folder = import_module("lipscope.studies").__path__
    return sorted(found.name.replace("_", "-") for found in pkgutil.iter_modules(folder) if found.ispkg)


def find(name: str) -> Study[Any]:
    """The study of that name.

    Raises:
        UsageError: there is none; the message lists those that exist.
    """
    if name not in names():
        raise UsageError(f"expected a study out of {', '.join(names())}, got {name!r}")
    study = import_module(f"lipscope.studies.{name.replace('-', '_')}").STUDY
    assert isinstance(study, Study) and study.name == name
    return study


def stored(name: str) -> dict[str, Any] | None:
    """The result that is stored in the study's folder, with its environment; None if there is none yet."""
    file = files("lipscope.studies").joinpath(name.replace("-", "_"), "result.json")
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _read(key: str, text: str, kind: Any) -> object:
    """A setting's value from text: bool, int, float, str, a tuple of one of these separated by commas, or None."""
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        if text.lower() == "none" and type(None) in typing.get_args(kind):
            return None
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        return tuple(_read(key, part.strip(), typing.get_args(kind)[0]) for part in text.split(",") if part.strip())
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is str:
            return text
        value = kind(text)
    except (KeyError, ValueError):
        raise UsageError(f"expected {kind.__name__} for the setting {key}, got {text!r}") from None
    if not math.isfinite(value):
        raise UsageError(f"expected a finite number for the setting {key}, got {text!r}")
    return value


def _plain(value: Any) -> Any:
    """A value as JSON has it: keys are texts, tuples are lists, what is not finite is None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
