"""The run store: one SQLite file a run, which a trainer appends to and anybody reads meanwhile. Knows no torch.

A run is a folder with `run.sqlite`. Values are kept as rows of `readings`, each pointing to the moment (session, step
and time), the series (quantity, name, layer) and the label (certainty, number of samples, note) that it belongs to.
Rows are only ever added. NaN is stored as NULL, which is what SQLite makes of it.

A session is one stretch of training. A session that begins at an earlier step than a former one reached (training was
resumed from a checkpoint) hides what the former had from that step on; the rows stay in the file.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipscope.claims.errors import UsageError

FILE = "run.sqlite"
APPLICATION = 0x4C495053
"""`LIPS`, the application id in the header of the file."""

VERSION = 1
"""Of the tables; a store of another version is refused."""

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (id INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL, state TEXT NOT NULL, info TEXT NOT NULL);
CREATE TABLE moments (id INTEGER PRIMARY KEY, session INTEGER NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL);
CREATE TABLE series (
    id INTEGER PRIMARY KEY, quantity TEXT NOT NULL, name TEXT NOT NULL, layer TEXT NOT NULL, UNIQUE (quantity, name, layer)
);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY, certainty TEXT NOT NULL, samples INTEGER NOT NULL, note TEXT NOT NULL,
    UNIQUE (certainty, samples, note)
);
CREATE TABLE readings (
    id INTEGER PRIMARY KEY, moment INTEGER NOT NULL, series INTEGER NOT NULL, label INTEGER NOT NULL, value REAL
);
CREATE TABLE alerts (
    id INTEGER PRIMARY KEY, moment INTEGER NOT NULL, kind TEXT NOT NULL, severity TEXT NOT NULL, layer TEXT NOT NULL,
    message TEXT NOT NULL, value REAL
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, session INTEGER NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL, kind TEXT NOT NULL,
    message TEXT NOT NULL
);
"""
"""Of version 1. Times are seconds since 1970."""


@dataclass(frozen=True)
class Session:
    """One stretch of training.

    Attributes:
        id: counted from 1.
        started: seconds since 1970.
        ended: the same, None while it runs and for ever if it was killed.
        state: `running` (or killed), `finished`, `failed`, or `stopped` (killed, and resumed since).
        info: settings, environment and versions.
    """

    id: int
    started: float
    ended: float | None
    state: str
    info: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Series:
    """The values of one name for one layer, in the order of steps.

    Attributes:
        quantity: what computed them.
        name: what they are.
        layer: which layer they belong to, empty for the network.
        step: optimizer steps done, (n,).
        time: seconds since 1970, (n,).
        value: (n,); NaN where there is none.
        certainty: see `lipscope.claims.quantity.Certainty`, (n,).
        samples: how many probe points, 0 for parameters alone, (n,).
        note: what a reader must know, (n,).
    """

    quantity: str
    name: str
    layer: str
    step: NDArray[np.int64]
    time: NDArray[np.float64]
    value: NDArray[np.float64]
    certainty: NDArray[np.object_]
    samples: NDArray[np.int64]
    note: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True)
class Alert:
    """Something that a user should look at; `severity` is `info` or `warning`."""

    step: int
    time: float
    kind: str
    severity: str
    layer: str
    message: str
    value: float | None


@dataclass(frozen=True)
class Event:
    """Something that happened to the observer: started, resumed, a quantity was disabled, ..."""

    session: int
    step: int
    time: float
    kind: str
    message: str


def is_run(folder: str | Path) -> bool:
    """Whether the folder holds a run's file."""
    return (Path(folder) / FILE).is_file()


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """Raise `UsageError` unless the file is a run store of this version."""
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise UsageError(f"expected a run store at {path}, got a file that SQLite cannot read: {error}") from None
    if application != APPLICATION:
        raise UsageError(f"expected a run store at {path}, got a file of another kind; choose another folder")
    if version != VERSION:
        age = "newer" if version > VERSION else "older"
        raise UsageError(
            f"expected a run store of version {VERSION} at {path}, got version {version}, written by a {age} lipscope; "
            f"use that lipscope for this run, or choose another folder"
        )


def open_run(folder: str | Path) -> Run:
    """A run for reading; the trainer may go on writing.

    Raises:
        UsageError: there is no run, it is damaged, or it is of another version.
    """
    return Run(folder)


class Run:
    """A run as it is in its file; `refresh` looks for what was added since."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / FILE
        if not path.is_file():
            raise UsageError(f"expected a run in {self.folder}, which Observer(..., run=...) makes; found no {FILE}")
        self._connection = _connect(path)
        try:
            check_version(self._connection, path)
            self._file = _identity(path)
            self._columns = _Columns()
            self.refresh()
        except (UsageError, sqlite3.DatabaseError) as error:
            self._connection.close()
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"expected a run store at {path}, got a damaged one: {error}") from None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    @property
    def exists(self) -> bool:
        """Whether the file that was opened is still there (a run may be deleted while it is looked at)."""
        return _identity(self.folder / FILE) == self._file

    def refresh(self) -> bool:
        """Read what was added since; whether there was anything."""
        return self._columns.extend(self._connection)

    @property
    def last_id(self) -> int:
        """Grows with every reading."""
        return self._columns.last

    @property
    def meta(self) -> dict[str, Any]:
        """What does not change: the model and its layers."""
        return {key: json.loads(value) for key, value in self._connection.execute("SELECT key, value FROM meta")}

    @property
    def sessions(self) -> list[Session]:
        """Every stretch of training, first to last."""
        rows = self._connection.execute("SELECT id, started, ended, state, info FROM sessions ORDER BY id")
        return [Session(i, started, ended, state, json.loads(info)) for i, started, ended, state, info in rows]

    @property
    def steps(self) -> NDArray[np.int64]:
        """The observed steps that are not hidden, in order."""
        columns = self._columns
        return np.unique(columns.step[columns.visible])

    @property
    def last_step(self) -> int | None:
        """The last observed step, if there is one."""
        steps = self.steps
        return int(steps[-1]) if steps.size else None

    def names(self) -> list[str]:
        """The names of all series, in the order in which they first appeared."""
        return list(dict.fromkeys(name for _, name, _ in self._columns.series))

    def layers(self, name: str) -> list[str]:
        """The layers that have a series of this name, in the order in which they first appeared."""
        return [layer for _, other, layer in self._columns.series if other == name]

    def series(self, name: str, layer: str = "", quantity: str | None = None) -> Series:
        """The values of one name and layer, empty if there are none; of the first quantity that has it unless one is named."""
        for found in self.all_series():
            if found.name == name and found.layer == layer and quantity in (None, found.quantity):
                return found
        none = np.zeros(0)
        words = none.astype(object)
        return Series(
            quantity or "", name, layer, none.astype(np.int64), none, none, words, none.astype(np.int64), words
        )

    def all_series(self) -> list[Series]:
        """Every series, in the order in which they first appeared."""
        return self._columns.split()

    def alerts(self) -> list[Alert]:
        """Every alert that is not hidden, in order."""
        rows = self._connection.execute(
            "SELECT moment, step, time, kind, severity, layer, message, value FROM alerts "
            "JOIN moments ON moments.id = moment ORDER BY alerts.id"
        ).fetchall()
        return [Alert(*row[1:]) for row in rows if self._columns.shows(row[0])]

    def events(self) -> list[Event]:
        """Every event, in order."""
        rows = self._connection.execute("SELECT session, step, time, kind, message FROM events ORDER BY id")
        return [Event(*row) for row in rows]


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that cannot write.

    A file in WAL mode on a disk that cannot be written is read as it is, which is right as long as it has no log beside it.
    """
    address = path.resolve().as_uri()
    for options in ("mode=ro", "mode=ro&immutable=1"):
        connection = sqlite3.connect(f"{address}?{options}", uri=True, timeout=5.0, check_same_thread=False)
        try:
            connection.execute("SELECT count(*) FROM sqlite_master")
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            if "immutable" in options or path.with_name(FILE + "-wal").exists():
                raise UsageError(f"cannot read the run in {path.parent}: {error}") from None
        except sqlite3.DatabaseError as error:
            connection.close()
            raise UsageError(f"expected a run store at {path}, got a file that SQLite cannot read: {error}") from None
    raise UsageError(f"cannot read the run in {path.parent}")  # pragma: no cover - the loop returns or raises


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


class _Columns:
    """The rows of a run as columns, extended by what was added to the file."""

    def __init__(self) -> None:
        self.last = 0
        self.series: list[tuple[str, str, str]] = []
        self._labels: list[tuple[str, int, str]] = []
        self._readings = np.zeros((0, 3), dtype=np.int64)  # moment, series, label: ids, counted from 1 without gaps
        self._values = np.zeros(0)
        self._session = np.zeros(0, dtype=np.int64)
        self.step = np.zeros(0, dtype=np.int64)
        self.time = np.zeros(0)
        self.visible = np.zeros(0, dtype=bool)
        self._split: list[Series] | None = None

    def extend(self, connection: sqlite3.Connection) -> bool:
        # Moments come last: the rows that were read point to moments, series and labels that are read after them.
        rows = connection.execute(
            "SELECT id, moment, series, label, value FROM readings WHERE id > ? ORDER BY id", (self.last,)
        ).fetchall()
        moments = connection.execute(
            "SELECT session, step, time FROM moments WHERE id > ? ORDER BY id", (len(self.step),)
        ).fetchall()
        self.series += connection.execute(
            "SELECT quantity, name, layer FROM series WHERE id > ? ORDER BY id", (len(self.series),)
        ).fetchall()
        self._labels += connection.execute(
            "SELECT certainty, samples, note FROM labels WHERE id > ? ORDER BY id", (len(self._labels),)
        ).fetchall()
        if moments:
            session, step, time = zip(*moments, strict=True)
            self._session = np.concatenate([self._session, np.array(session, dtype=np.int64)])
            self.step = np.concatenate([self.step, np.array(step, dtype=np.int64)])
            self.time = np.concatenate([self.time, np.array(time, dtype=np.float64)])
            self.visible = _visible(self._session, self.step)
        if rows:
            ids, moment, series, label, value = zip(*rows, strict=True)
            self._readings = np.concatenate([self._readings, np.array([moment, series, label], dtype=np.int64).T])
            self._values = np.concatenate([self._values, np.array(value, dtype=np.float64)])  # None becomes NaN
            self.last = ids[-1]
        if rows or moments:
            self._split = None
        return bool(rows or moments)

    def shows(self, moment: int) -> bool:
        return moment <= len(self.visible) and bool(self.visible[moment - 1])

    def split(self) -> list[Series]:
        if self._split is None:
            moment, series, label = (column - 1 for column in self._readings.T)
            shown = np.flatnonzero(self.visible[moment])
            order = shown[np.lexsort((shown, self.step[moment[shown]], series[shown]))]
            ends: Any = np.cumsum(np.bincount(series[order], minlength=len(self.series)))[:-1] if self.series else []
            words = [np.array([row[i] for row in self._labels], dtype=object) for i in range(3)]
            self._split = []
            parts = np.split(order, ends) if self.series else []
            for (quantity, name, layer), part in zip(self.series, parts, strict=True):
                at, tag = moment[part], label[part]
                self._split.append(
                    Series(
                        quantity, name, layer, self.step[at], self.time[at], self._values[part],
                        words[0][tag], words[1][tag].astype(np.int64), words[2][tag],
                    )
                )  # fmt: skip
        return self._split


def _visible(session: NDArray[np.int64], step: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which moments no later session hides: those before the first step of every later session."""
    visible = np.ones(len(step), dtype=bool)
    hidden_from = np.iinfo(np.int64).max
    for one in np.unique(session)[::-1]:
        mine = session == one
        visible[mine] = step[mine] < hidden_from
        hidden_from = min(hidden_from, int(step[mine].min()))
    return visible
