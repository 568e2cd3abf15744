"""Files that are written all or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl

    LOCKS = True
except ImportError:  # Windows, where a file that is open cannot be removed
    LOCKS = False


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[BinaryIO]:
    """A file to write the new content of ``path`` to: a temporary one beside it, then fsync, then a rename.

    A reader, or a run that was killed, finds the old content or the new one. If the block fails, ``path`` stays as it
    was and no temporary file is left; one that a killed process left is removed by the next call for that folder. Of a
    link the target is replaced. A device or a pipe cannot be replaced: it is written to, as by a shell's ``>``.

    Raises:
        OSError: the folder does not exist, or the file cannot be written; it names ``path``.
    """
    given = Path(path)
    if _is_stream(given):
        try:
            with given.open("wb") as stream:
                yield stream
        except OSError as error:
            raise _named(error, given, None) from None
        return
    try:
        target = given.resolve()
        file, temporary = _temporary(target.parent)
    except RuntimeError as error:  # links in a circle, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(given)) from error
    except OSError as error:
        raise _named(error, given, None) from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if LOCKS:  # still locked: it cannot be taken for a file that a killed process left
                temporary.replace(target)
        if not LOCKS:
            temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _named(error, given, temporary) from None
        raise
    _remove_leftovers(target.parent)
    _sync_folder(target.parent)


def _is_stream(path: Path) -> bool:
    """Whether a path names a device, a pipe or a folder, which cannot be replaced, or an open file (/dev/stdout)."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
    return not regular or path.absolute().parts[:2] in ((os.sep, "dev"), (os.sep, "proc"))


def _temporary(folder: Path) -> tuple[BinaryIO, Path]:
    """A new file for `replacing`, under a lock that ends with the process."""
    while True:
        # Not from tempfile, whose files other users cannot read: checkpoints and reports are shared.
        path = folder / f".knapsack-rl-{secrets.token_hex(8)}.tmp"
        file = path.open("xb")
        if LOCKS:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process is about to remove it as a leftover
                file.close()
                continue
            except OSError:  # a file system without locks, where no leftovers are removed either
                return file, path
            if not path.exists():
                file.close()
                continue
        return file, path


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed: those that are not locked."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [entry.path for entry in entries if re.fullmatch(r"\.knapsack-rl-[0-9a-f]{16}\.tmp", entry.name)]
        for path in left:
            with contextlib.suppress(OSError):
                if not LOCKS:
                    os.unlink(path)  # noqa: PTH108
                    continue
                handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)  # noqa: PTH108
                finally:
                    os.close(handle)


def _named(error: OSError, path: Path, temporary: Path | None) -> OSError:
    """The error about ``path``, if it is about the temporary file or names none."""
    if error.errno is None or (temporary is not None and error.filename not in (None, str(temporary))):
        return error
    return OSError(error.errno, error.strerror, str(path))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets folders be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
