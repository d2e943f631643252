from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lipscope.claims.errors import UsageError
from lipscope.claims.quantity import Reading
from lipscope.dynamics import recorder as recording
from lipscope.dynamics.disk import network_disk
from lipscope.dynamics.recorder import Entry, ObserverWarning, Recorder
from lipscope.dynamics.store import FILE, is_run, open_run


def entry(step: int, **values: float) -> Entry:
    return Entry(step, 1000.0 + step, [("q", Reading(name, value, "measured", "fc")) for name, value in values.items()])


def written(folder: Path, steps: range, **options: object) -> None:
    recorder = Recorder(folder)
    for step in steps:
        recorder.record(entry(step, a=float(step)))
    recorder.close()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run", {"model": {"class": "Net"}}, {"settings": {"budget": 0.05}})
    readings = [
        ("q", Reading("x", float("nan"), "estimate", "fc1", 3, "because")),
        ("q", Reading("y", float("inf"), "computed")),
        ("q", Reading("z", -0.1, "measured", "fc1", 3)),
    ]
    alert = ("gap", "info", "fc1", "a message", 0.7)
    recorder.record(Entry(7, 12.5, readings, [alert]))
    recorder.event(7, "note", "said")
    recorder.close()
    with open_run(tmp_path / "run") as run:
        assert run.meta["model"] == {"class": "Net"}
        assert run.names() == ["x", "y", "z"] and run.layers("x") == ["fc1"]
        x = run.series("x", "fc1")
        assert np.isnan(x.value).all() and x.step.tolist() == [7] and x.time.tolist() == [12.5]
        assert (x.certainty[0], x.samples[0], x.note[0]) == ("estimate", 3, "because")
        assert run.series("y").value.tolist() == [np.inf]
        assert run.series("z", "fc1").value.tolist() == [-0.1]
        assert len(run.series("none")) == 0 and run.series("none").value.dtype == np.float64
        (found,) = run.alerts()
        assert (found.step, found.kind, found.severity, found.layer, found.message, found.value) == (7, *alert)
        assert [(e.kind, e.message, e.step) for e in run.events()] == [("note", "said", 7)]
        (session,) = run.sessions
        assert session.state == "finished" and session.ended and session.info["settings"] == {"budget": 0.05}


def test_series_of_one_name_and_two_quantities_are_two(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    rows = [("a", Reading("x", 1.0, "measured")), ("b", Reading("x", 2.0, "measured"))]
    recorder.record(Entry(1, 0.0, rows))
    recorder.close()
    with open_run(tmp_path) as run:
        assert run.series("x", quantity="b").value.tolist() == [2.0]
        assert run.series("x", quantity="a").value.tolist() == [1.0]


def test_a_finished_run_is_one_plain_file(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.lock", FILE]
    assert is_run(tmp_path) and not is_run(tmp_path / "none")


def test_resuming_appends_and_an_earlier_start_hides_what_was_there(tmp_path: Path) -> None:
    written(tmp_path, range(10))
    recorder = Recorder(tmp_path)
    assert recorder.last_step == 9 and recorder.session == 2
    for step in (6, 7):
        recorder.record(entry(step, a=100.0 + step))
    recorder.close()
    with open_run(tmp_path) as run:
        series = run.series("a", "fc")
        assert series.step.tolist() == list(range(8))
        assert series.value.tolist() == [0, 1, 2, 3, 4, 5, 106, 107]
        assert run.last_step == 7
    written(tmp_path, range(8, 9))
    with open_run(tmp_path) as run:
        assert run.steps.tolist() == list(range(9))


def test_a_third_session_hides_both_others(tmp_path: Path) -> None:
    for steps in (range(10), range(5, 7), range(3, 4)):
        written(tmp_path, steps)
    with open_run(tmp_path) as run:
        assert run.steps.tolist() == [0, 1, 2, 3]
        assert len(run.series("a", "fc")) == 4


def test_refresh_finds_exactly_what_was_added(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(entry(0, a=1.0))
    with open_run(tmp_path) as run:
        assert not run.refresh()
        last = run.last_id
        recorder.record(entry(1, a=2.0, b=3.0))
        assert run.refresh() and run.last_id == last + 2
        assert run.series("a", "fc").value.tolist() == [1.0, 2.0]
        assert run.series("b", "fc").value.tolist() == [3.0]
    recorder.close()


def test_a_reader_in_the_middle_of_reading_does_not_block_the_writer(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.record(entry(0, a=1.0))
    reader = sqlite3.connect(f"file:{tmp_path / FILE}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM readings").fetchone() == (1,)
    for step in range(1, 50):
        recorder.record(entry(step, a=1.0))
        assert not recorder._waiting, "the record waits for the reader"
    assert reader.execute("SELECT count(*) FROM readings").fetchone() == (1,)
    reader.execute("COMMIT")
    reader.close()
    with open_run(tmp_path) as run:
        assert len(run.steps) == 50
        recorder.close()  # while somebody reads: stays a file with a log, and stays readable
        assert len(run.steps) == 50 and run.sessions[0].state == "finished"


def test_a_deleted_run_can_be_looked_at_to_the_end(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "run")
    recorder.record(entry(0, a=1.0))
    with open_run(tmp_path / "run") as run:
        assert run.exists
        for file in (tmp_path / "run").iterdir():
            file.unlink()
        assert not run.exists
        assert run.series("a", "fc").value.tolist() == [1.0]
        with pytest.warns(ObserverWarning, match="was deleted") as caught:  # the trainer is told once, and goes on
            for step in range(1, 5):
                recorder.record(entry(step, a=2.0))
            recorder.close()
        assert len(caught) == 1
    with pytest.raises(UsageError, match=r"found no run\.sqlite"):
        open_run(tmp_path / "run")


@pytest.mark.parametrize("version, age", [(2, "newer"), (0, "older")])
def test_another_version_is_refused_by_reader_and_writer(tmp_path: Path, version: int, age: str) -> None:
    written(tmp_path, range(2))
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    before = (tmp_path / FILE).read_bytes()
    for use in (open_run, Recorder):
        with pytest.raises(UsageError, match=f"got version {version}, written by a {age} lipscope"):
            use(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"this is no database, but it is longer than a header " * 20, b"short"])
def test_another_file_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    for use in (open_run, Recorder):
        with pytest.raises(UsageError, match=r"SQLite cannot read|another kind"):
            use(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    for use in (open_run, Recorder):
        with pytest.raises(UsageError, match="a file of another kind"):
            use(tmp_path)


def test_a_folder_that_cannot_be_made_warns_once_and_records_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(ObserverWarning, match="cannot write the run") as caught:
        recorder = Recorder(tmp_path / "file" / "run")
        for step in range(5):
            recorder.record(entry(step, a=1.0))
        recorder.event(1, "x", "y")
        recorder.close()
    assert len(caught) == 1 and not recorder.writing


def test_a_read_only_file_warns_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, range(2))
    connect = sqlite3.connect

    def read_only(path: Path, **options: object) -> sqlite3.Connection:
        return connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    with pytest.warns(ObserverWarning, match="readonly") as caught:
        recorder = Recorder(tmp_path)
        recorder.record(entry(5, a=1.0))
        recorder.close()
    assert len(caught) == 1


def test_a_full_disk_warns_once_and_what_waits_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "PATIENCE", 0.0)
    recorder = Recorder(tmp_path)
    recorder.record(entry(0, a=1.0))
    assert recorder._connection is not None
    pages = recorder._connection.execute("PRAGMA page_count").fetchone()[0]
    recorder._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.warns(ObserverWarning, match="full") as caught:
        for step in range(1, 400):
            recorder.record(Entry(step, 0.0, [("q", Reading(f"new {step}", 1.0, "measured", note=f"{step}" * 50))] * 5))
    assert len(caught) == 1
    assert 0 < len(recorder._waiting) <= recording.KEPT
    recorder._connection.execute("PRAGMA max_page_count = 100000")
    recorder.record(entry(400, a=2.0))
    recorder.close()
    with open_run(tmp_path) as run:
        series = run.series("a", "fc")
        assert series.step.tolist() == [0, 400] and series.value.tolist() == [1.0, 2.0]
        assert run.series("new 399").step.tolist() == [399] * 5
        for found in run.all_series():  # names given in transactions that failed point to nothing else
            assert len(found) == 0 or found.name == "a" or found.step.tolist() == [int(found.name.split()[1])] * 5


def test_a_locked_file_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "PATIENCE", 0.0)
    recorder = Recorder(tmp_path)
    assert recorder._connection is not None
    recorder._connection.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.warns(ObserverWarning, match="locked"):
        recorder.record(entry(1, a=1.0))
    other.execute("COMMIT")
    other.close()
    recorder.record(entry(2, a=2.0))
    recorder.close()
    with open_run(tmp_path) as run:
        assert run.series("a", "fc").value.tolist() == [1.0, 2.0]


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom lipscope.dynamics.recorder import Recorder\n"
        "r = Recorder(pathlib.Path(sys.argv[1]))\nprint('open', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "open\n"
        with pytest.raises(UsageError, match="of this process or of another one, is recording"):
            Recorder(tmp_path)
        child.kill()
    written(tmp_path, range(2))  # a killed process has let go
    with open_run(tmp_path) as run:
        assert [s.state for s in run.sessions] == ["stopped", "finished"]


TRY = (
    "import sys, pathlib\nfrom lipscope.dynamics.recorder import Recorder\nRecorder(pathlib.Path(sys.argv[1])).close()"
)


def test_two_recorders_of_one_process_do_not_write_one_run(tmp_path: Path) -> None:
    first = Recorder(tmp_path)
    with pytest.raises(UsageError, match="close that observer first"):
        Recorder(tmp_path)
    # That the second one was refused does not let go of the first one's lock.
    other = subprocess.run([sys.executable, "-c", TRY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert other.returncode and "is recording into" in other.stderr
    first.record(entry(1, a=1.0))
    first.close()
    written(tmp_path, range(2, 4))
    with open_run(tmp_path) as run:
        assert run.steps.tolist() == [1, 2, 3] and [s.state for s in run.sessions] == ["finished", "finished"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_hold_the_run(tmp_path: Path) -> None:
    """As workers that load data are, which may outlive a trainer that was killed."""
    code = (
        "import os, sys, time, pathlib\nfrom lipscope.dynamics.recorder import Recorder\n"
        "r = Recorder(pathlib.Path(sys.argv[1]))\n"
        "if os.fork() == 0:\n    print('forked', flush=True)\n    sys.stdin.read()\nelse:\n    time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == "forked\n"
        parent.kill()
        os.waitid(os.P_PID, parent.pid, os.WEXITED | os.WNOWAIT)
        Recorder(tmp_path).close()


MOUNTS = "/dev/sda1 / ext4 rw 0 0\nserver:/x /net nfs4 rw 0 0\nu@h: /home/a\\040b fuse.sshfs rw 0 0\n"


@pytest.mark.parametrize(
    "folder, kind",
    [
        ("/", None),
        ("/net", "nfs4"),
        ("/net/deep/run", "nfs4"),
        ("/network", None),
        ("/home/a b/run", "sshfs"),
        ("/home", None),
    ],
)
def test_network_disks_are_told_by_the_nearest_mount(folder: str, kind: str | None) -> None:
    assert network_disk(Path(folder), MOUNTS) == kind


@pytest.mark.parametrize("way", ["network", "refused"])
def test_without_a_log_a_rollback_journal_is_used_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "network":
        monkeypatch.setattr(recording, "network_disk", lambda folder: "nfs4")
    else:
        connect = sqlite3.connect

        class NoLog(sqlite3.Connection):
            def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
                if "WAL" in sql:
                    raise sqlite3.OperationalError("locking protocol")
                return super().execute(sql, *parameters)

        monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, factory=NoLog, **k))
    with pytest.warns(ObserverWarning, match="nfs4|locking protocol") as caught:
        recorder = Recorder(tmp_path)
    assert len(caught) == 1 and recorder.journal == "delete"
    recorder.record(entry(1, a=1.0))
    assert not (tmp_path / f"{FILE}-wal").exists()
    recorder.close()
    monkeypatch.undo()
    with open_run(tmp_path) as run:
        assert run.series("a", "fc").value.tolist() == [1.0]


WRITER = """
import sys, pathlib
from lipscope.claims.quantity import Reading
from lipscope.dynamics.recorder import Entry, Recorder
recorder = Recorder(pathlib.Path(sys.argv[1]))
step = 0 if recorder.last_step is None else recorder.last_step + 1
while True:
    rows = [("q", Reading(f"v{i}", float(step), "measured", note=f"{step % 7}")) for i in range(30)]
    recorder.record(Entry(step, 0.0, rows))
    sys.stdout.write(f"{step}\\n"); sys.stdout.flush()
    step += 1
"""


def test_a_killed_writer_loses_at_most_the_step_in_flight(tmp_path: Path) -> None:
    for round_ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            first = child.stdout.readline()
            assert first, "the writer did not start"
            time.sleep(0.003 * round_)
            os.kill(child.pid, signal.SIGKILL)
            reported = [int(line) for line in [first, *child.stdout] if line.endswith("\n")]
        with open_run(tmp_path) as run:
            assert run.last_step is not None and run.last_step >= reported[-1], "a step that was recorded is lost"
            assert run.steps.tolist() == list(range(run.last_step + 1))
            for series in run.all_series():  # no step is there by half
                assert series.step.tolist() == run.steps.tolist()
                assert series.value.tolist() == run.steps.tolist()
            assert run.sessions[-1].ended is None
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_reading_a_run_needs_no_torch(tmp_path: Path) -> None:
    written(tmp_path, range(3))
    code = (
        "import sys\nfrom lipscope.dynamics.store import open_run\nfrom lipscope.dynamics.export import export_csv\n"
        f"print(len(open_run({str(tmp_path)!r}).steps), export_csv({str(tmp_path)!r}, {str(tmp_path / 'a.csv')!r}), "
        "'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["3", "3", "False"]


def test_many_values_are_the_same_after_reading(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    values = np.random.default_rng(0).normal(size=(200, 100))
    for step, row in enumerate(values.tolist()):
        recorder.record(Entry(step, float(step), [("q", Reading(f"v{i}", v, "measured")) for i, v in enumerate(row)]))
    recorder.close()
    with open_run(tmp_path) as run:
        found = np.stack([series.value for series in run.all_series()], axis=1)
    assert np.array_equal(found, values)
