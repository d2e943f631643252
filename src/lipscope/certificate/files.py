"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lipscope.claims.errors import ResourceError, UsageError


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turn the operating system's complaints into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceError(
                f"the disk is full: {target} was not written and nothing was left behind; free some space, or write elsewhere"
            ) from None
        raise UsageError(
            f"cannot write {target}: {error.strerror or error}; choose a place that can be written"
        ) from None


def write_file(target: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it and rename it.

    Raises:
        ResourceError: the disk is full.
        UsageError: the place cannot be written.
    """
    with _explained(target):
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def replaceable(target: Path, marker: str) -> bool:
    """Whether a folder may take the place of `target`: it does not exist, is empty, or holds the file `marker`."""
    return not target.exists() or (target.is_dir() and ((target / marker).is_file() or not any(target.iterdir())))


@contextmanager
def new_folder(target: Path, marker: str) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place when the block ends without an error.

    An existing `target` is replaced if it is empty or holds the file `marker`, that is, if it is ours.

    Raises:
        ResourceError: the disk is full.
        UsageError: the place cannot be written, or holds something that is not ours.
    """
    target = target.absolute()
    if not replaceable(target, marker):
        raise UsageError(
            f"expected {target} to be new, empty or an older bundle, got something else; nothing was overwritten, choose another folder"
        )
    with _explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            temporary.chmod(0o755)
            yield temporary
            if target.exists():
                # The old folder leaves only when the new one is complete, and comes back if that cannot take its place.
                aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
                target.rename(aside / "old")
                try:
                    temporary.rename(target)
                except OSError:
                    (aside / "old").rename(target)
                    raise
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
            else:
                temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
