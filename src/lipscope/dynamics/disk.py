"""Where a run is written: which disks can keep a write-ahead log, and who may write there."""

from __future__ import annotations

import importlib
import os
import weakref
from pathlib import Path
from typing import IO

from lipscope.claims.errors import UsageError

fcntl = importlib.import_module("fcntl") if os.name == "posix" else None
"""Locks of files; elsewhere two writers are not told apart."""

NETWORK_DISKS = (
    "nfs", "cifs", "smb", "sshfs", "9p", "afs", "ceph", "lustre",
    "gpfs", "beegfs", "gluster", "davfs", "vboxsf",
)  # fmt: skip
"""Beginnings of the names of file systems on which several machines share a file: WAL needs shared memory."""


def network_disk(folder: Path, mounts: str | None = None) -> str | None:
    """The kind of network file system that the folder is on, or None (also where that cannot be told).

    Args:
        folder: that exists.
        mounts: in the format of `/proc/mounts`, which is read if it is None.
    """
    try:
        text = Path("/proc/mounts").read_text(encoding="utf-8") if mounts is None else mounts
    except OSError:
        return None
    place, best = folder.resolve(), (0, "")
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) < 3:
            continue
        point = Path(words[1].replace("\\040", " "))
        if place == point or point in place.parents:
            best = max(best, (len(point.parts), words[2]), key=lambda pair: pair[0])
    kind = best[1].removeprefix("fuse.")
    return kind if kind.startswith(NETWORK_DISKS) else None


def hold(folder: Path) -> IO[str] | None:
    """The open file whose lock keeps other recorders out of the folder until it is closed or the process dies.

    The lock belongs to the open file and not to the process, so that two recorders of one process exclude each other,
    too. Processes that are forked (they load data) would hold it as well, and longer: they close the file.

    Raises:
        UsageError: somebody else holds it.
    """
    if fcntl is None:
        return None
    lock = (folder / "run.lock").open("w")
    inherited = weakref.ref(lock)
    os.register_at_fork(after_in_child=lambda: _close(inherited()))
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UsageError(
            f"expected a run that nobody else writes, got {folder}, which another observer, of this process or of another "
            "one, is recording into; choose another folder, or close that observer first"
        ) from None
    except OSError:
        pass  # a file system without locks: two writers are then not told apart
    return lock


def _close(file: IO[str] | None) -> None:
    if file is not None:
        file.close()
