"""Writing a run: what is recorded at one step is committed in one transaction; trouble with the disk never raises."""

from __future__ import annotations

import json
import os
import sqlite3
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Reading
from lipscope.dynamics.disk import hold, network_disk
from lipscope.dynamics.store import APPLICATION, FILE, SCHEMA, VERSION, check_version

KEPT = 200
"""Steps that wait for a disk that is full or a file that is locked; the oldest are dropped first."""

PATIENCE = 1.0
"""Seconds between two tries after a write failed."""

CHECKPOINT_PAGES = 4000
"""Pages of the log after which it is moved into the file: 16 MB, as each move waits for the disk."""


class ObserverWarning(UserWarning):
    """Something is wrong with what is observed or recorded; training goes on."""


def warn_user(message: str) -> None:
    """An `ObserverWarning` that never raises, also where the user has made warnings errors: training goes on."""
    try:
        warnings.warn(message, ObserverWarning, stacklevel=3)
    except Warning:
        pass


@dataclass(frozen=True)
class Entry:
    """What is recorded of one step.

    Attributes:
        step: optimizer steps done.
        time: seconds since 1970.
        readings: each with the name of its quantity.
        alerts: kind, severity, layer, message and value of each.
        kept: JSON values by key, of which the store has the last one: what a run goes on from.
    """

    step: int
    time: float
    readings: Sequence[tuple[str, Reading]]
    alerts: Sequence[tuple[str, str, str, str, float | None]] = ()
    kept: Mapping[str, Any] = field(default_factory=dict)


class Recorder:
    """Appends to the store of a run.

    A process that is killed loses at most the step that is being recorded. If the folder cannot be written, the disk is
    full or the file is locked, one `ObserverWarning` is given, up to `KEPT` steps wait for a better time, and nothing is
    raised.

    Args:
        folder: of the run; it is made if it is not there.
        meta: what does not change during a run, JSON values by key.
        info: of this session: settings, environment, versions.
        warn: told once about each kind of trouble.

    Raises:
        UsageError: the folder holds a store of another version, another file of that name, a run of another model, or a run
            that another recorder writes.
    """

    def __init__(
        self,
        folder: str | Path,
        meta: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.last_step: int | None = None
        self.kept: dict[str, Any] = {}
        self.journal = ""
        self.session = 0
        self._warn = warn or warn_user
        self._warned: set[str] = set()
        self._waiting: deque[Entry | tuple[int, float, str, str]] = deque(maxlen=KEPT)
        self._retry = 0.0
        self._series: dict[tuple[str, str, str], int] = {}
        self._labels: dict[tuple[str, int, str], int] = {}
        self._connection: sqlite3.Connection | None = None
        self._lock: IO[str] | None = None
        self._process = os.getpid()
        try:
            self._open(dict(meta or {}), dict(info or {}))
        except (OSError, sqlite3.Error) as error:
            self._trouble("open", f"cannot write the run in {self.folder}: {error}; nothing of it is recorded")
            self._release()
        except UsageError:
            self._release()
            raise

    @property
    def writing(self) -> bool:
        """Whether there is a file to write to."""
        return self._connection is not None

    def record(self, entry: Entry) -> None:
        """Commit what was observed at one step, with whatever is still waiting."""
        self._waiting.append(entry)
        self.flush()

    def event(self, step: int, kind: str, message: str) -> None:
        """Commit something that happened."""
        self._waiting.append((step, time.time(), kind, message))
        self.flush()

    def flush(self, now: bool = False) -> bool:
        """Commit whatever waits, unless the last try failed less than `PATIENCE` ago; whether nothing waits any more."""
        if self._connection is None or os.getpid() != self._process:
            self._waiting.clear()
            return False
        if not self._waiting or (self._retry and not now and time.monotonic() < self._retry):
            return not self._waiting
        known = len(self._series), len(self._labels)
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for entry in self._waiting:
                self._insert(self._connection, entry)
            self._connection.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            self._undo(known)
            self._retry = time.monotonic() + PATIENCE
            self._trouble(
                "write", f"cannot record into {self.folder}: {error}; training goes on, recording is tried again"
            )
            if not isinstance(error, sqlite3.OperationalError):
                self._waiting.clear()  # what cannot be stored at all would stand in the way for ever
            return False
        self._waiting.clear()
        self._retry = 0.0
        return True

    def close(self, state: str = "finished") -> None:
        """End the session; a run that nobody reads at this moment becomes one plain file."""
        if self._connection is None or os.getpid() != self._process:
            return
        if not (self.folder / FILE).exists():
            self._trouble(
                "deleted", f"the run in {self.folder} was deleted while it was written; nothing of it is left"
            )
            self._release()
            return
        self.flush(now=True)
        try:
            self._connection.execute(
                "UPDATE sessions SET ended = ?, state = ? WHERE id = ?", (time.time(), state, self.session)
            )
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error as error:
            if "locked" not in str(error):
                self._trouble("write", f"cannot finish the run in {self.folder}: {error}")
        self._release()

    # ------------------------------------------------------------------------------------------------- opening

    def _open(self, meta: dict[str, Any], info: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = hold(self.folder)
        path = self.folder / FILE
        connection = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
        self._connection = connection
        try:
            fresh = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"expected a run store or nothing at {path}, got a file that SQLite cannot read: {error}"
            ) from None
        if not fresh:
            check_version(connection, path)
            _check_model(connection, meta.get("model"), self.folder)
        self._choose_journal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute("BEGIN IMMEDIATE")
        if fresh:
            self._create(connection, meta)
        self._begin(connection, info)
        connection.execute("COMMIT")

    def _choose_journal(self, connection: sqlite3.Connection) -> None:
        kind = network_disk(self.folder)
        reason = f"it is on a network disk ({kind})" if kind else ""
        if not kind:
            try:
                self.journal = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                connection.execute(
                    "SELECT count(*) FROM sqlite_master"
                ).fetchone()  # the first read maps the shared memory
            except sqlite3.OperationalError as error:
                if "readonly" in str(error):
                    raise
                self.journal, reason = "", str(error)
        if self.journal != "wal":
            self.journal = connection.execute("PRAGMA journal_mode = DELETE").fetchone()[0]
            self._trouble(
                "journal",
                f"{self.folder} cannot keep a write-ahead log ({reason or 'SQLite refused it'}): using a rollback journal; "
                "a reader may then delay a record, never training",
            )
            connection.execute("PRAGMA busy_timeout = 50")

    @staticmethod
    def _create(connection: sqlite3.Connection, meta: dict[str, Any]) -> None:
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
        for statement in SCHEMA.split(";"):
            if statement.strip():
                connection.execute(statement)
        rows = [(key, json.dumps(value)) for key, value in {"created": time.time(), **meta}.items()]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)

    def _begin(self, connection: sqlite3.Connection, info: dict[str, Any]) -> None:
        connection.execute("UPDATE sessions SET state = 'stopped' WHERE state = 'running'")
        self.session = int(
            connection.execute(
                "INSERT INTO sessions (started, state, info) VALUES (?, 'running', ?)", (time.time(), json.dumps(info))
            ).lastrowid
            or 0
        )
        last = "SELECT step FROM moments ORDER BY id DESC LIMIT 1"
        row = connection.execute(last).fetchone()
        self.last_step = None if row is None else int(row[0])
        for key, value in connection.execute("SELECT key, value FROM meta WHERE key LIKE 'kept-%'"):
            self.kept[key.removeprefix("kept-")] = json.loads(value)
        for i, *series in connection.execute("SELECT id, quantity, name, layer FROM series"):
            self._series[(series[0], series[1], series[2])] = i
        for i, *label in connection.execute("SELECT id, certainty, samples, note FROM labels"):
            self._labels[(label[0], label[1], label[2])] = i

    def _release(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ------------------------------------------------------------------------------------------------- writing

    def _insert(self, connection: sqlite3.Connection, entry: Entry | tuple[int, float, str, str]) -> None:
        if not isinstance(entry, Entry):
            step, when, kind, message = entry
            connection.execute(
                "INSERT INTO events (session, step, time, kind, message) VALUES (?, ?, ?, ?, ?)",
                (self.session, step, when, kind, message),
            )
            return
        moment = connection.execute(
            "INSERT INTO moments (session, step, time) VALUES (?, ?, ?)", (self.session, entry.step, entry.time)
        ).lastrowid
        rows = [(moment, self._series_id(q, r), self._label_id(r), r.value) for q, r in entry.readings]
        connection.executemany("INSERT INTO readings (moment, series, label, value) VALUES (?, ?, ?, ?)", rows)
        connection.executemany(
            "INSERT INTO alerts (moment, kind, severity, layer, message, value) VALUES (?, ?, ?, ?, ?, ?)",
            [(moment, *alert) for alert in entry.alerts],
        )
        states = [(f"kept-{key}", json.dumps(value)) for key, value in entry.kept.items()]
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", states)

    def _series_id(self, quantity: str, reading: Reading) -> int:
        key = (quantity, reading.name, reading.layer)
        if key not in self._series:
            self._series[key] = self._added("INSERT INTO series (quantity, name, layer) VALUES (?, ?, ?)", key)
        return self._series[key]

    def _label_id(self, reading: Reading) -> int:
        key = (reading.certainty, reading.samples, reading.note)
        if key not in self._labels:
            self._labels[key] = self._added("INSERT INTO labels (certainty, samples, note) VALUES (?, ?, ?)", key)
        return self._labels[key]

    def _added(self, statement: str, row: Iterable[object]) -> int:
        assert self._connection is not None
        return int(self._connection.execute(statement, tuple(row)).lastrowid or 0)

    def _undo(self, known: tuple[int, int]) -> None:
        """Forget what the failed transaction had named; dictionaries keep the order of insertion."""
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        while len(self._series) > known[0]:
            self._series.popitem()
        while len(self._labels) > known[1]:
            self._labels.popitem()

    def _trouble(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            self._warn(text)


def _check_model(connection: sqlite3.Connection, model: Any, folder: Path) -> None:
    """Raise `UsageError` if the run is of a model with other layers: its series would go on as another's."""
    row = connection.execute("SELECT value FROM meta WHERE key = 'model'").fetchone()
    known = None if row is None else json.loads(row[0])
    if not isinstance(known, dict) or not isinstance(model, dict):
        return
    for key in ("layers", "parameters"):
        if key in known and key in model and known[key] != json.loads(json.dumps(model[key])):
            raise UsageError(
                f"expected a new folder, or a run of this model ({_outline(model)}), got {folder} with a run of another "
                f"({_outline(known)}); choose another folder with run="
            )


def _outline(model: dict[str, Any]) -> str:
    layers = model.get("layers", [])
    return f"{model.get('class', 'a model')} with {len(layers)} followed layers and {model.get('parameters', '?')} parameters"
