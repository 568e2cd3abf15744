"""Many cells in processes of their own: what finishes is kept, what fails is named, and the rest goes on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, TypeAlias

import polars as pl

from knapsack_rl.compare.cell import Progress, run_cell
from knapsack_rl.compare.cells import Cell, fingerprint
from knapsack_rl.files import replacing

# Arrays of a few thousand numbers gain nothing from threads, and processes that each start two starve one another.
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "POLARS_MAX_THREADS"), "1"
)


# Given a cell, a budget in tokens or None, and whom to tell the share that is spent: its rows. Importable by name.
Runner: TypeAlias = Callable[[Cell, "int | None", Progress], pl.DataFrame]


@dataclass(frozen=True)
class Job:
    """A cell to run: where its rows go, its budget in tokens if it has one, and who runs it."""

    cell: Cell
    file: Path
    tokens: int | None = None
    run: Runner = run_cell


@dataclass(frozen=True)
class News:
    """What a worker says of its cell: the ``share`` of the budget spent, that it is ``done``, or why it ``failed``."""

    cell: Cell
    kind: Literal["share", "done", "failed"]
    share: float = 0.0
    error: str = ""


class Workers:
    """Processes that run jobs; as a context, so that none outlives it.

    Every process is asked for one job at a time over a pipe of its own. One that dies takes only its cell with it.
    """

    def __init__(self, count: int) -> None:
        """So many workers.

        Raises:
            ValueError: fewer than one.
        """
        if count < 1:
            raise ValueError(f"{count} workers run nothing: use at least 1")
        self.count = count
        self._running: dict[Connection, tuple[BaseProcess, Job | None]] = {}

    def __enter__(self) -> Workers:
        """Nothing runs yet: workers start with their first job."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop them all; what they were at is lost, what was finished lies in its file."""
        for pipe, (process, _) in self._running.items():
            process.terminate()
            process.join()
            pipe.close()
        self._running.clear()

    def run(self, jobs: Sequence[Job]) -> Iterator[News]:
        """Run jobs, and pass on what is said of them; ends when each is done or has failed."""
        waiting = deque(jobs)
        while len(self._running) < min(self.count, len(jobs)):
            self._start()
        for pipe in self._running:
            self._give(pipe, waiting)
        while busy := [pipe for pipe, (_, job) in self._running.items() if job is not None]:
            for ready in wait(busy):
                assert isinstance(ready, Connection)
                news = self._hear(ready)
                yield news
                if news.kind != "share":
                    if ready in self._running:
                        self._give(ready, waiting)
                    elif waiting:
                        self._give(self._start(), waiting)

    def _start(self) -> Connection:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs,), daemon=True)
        with _environment(_ONE_THREAD), _deaf_children():
            process.start()
            theirs.close()  # so that its death is the end of the pipe
            self._running[ours] = (process, None)
        return ours

    def _give(self, pipe: Connection, waiting: deque[Job]) -> None:
        process, _ = self._running[pipe]
        job = waiting.popleft() if waiting else None
        self._running[pipe] = (process, job)
        if job is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died idle: `_hear` will say so
                pipe.send(job)

    def _hear(self, pipe: Connection) -> News:
        process, job = self._running[pipe]
        assert job is not None
        try:
            news: News = pipe.recv()
        except (EOFError, OSError):
            process.join()
            pipe.close()
            del self._running[pipe]
            return News(job.cell, "failed", error=f"its process died with exit code {process.exitcode}")
        return news


def _work(pipe: Connection) -> None:
    """A worker's life: take a job, run it, write its rows, say so; until nobody is there any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then stops us
    fingerprint()  # of the code that has just been imported, for `_run`
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job: Job = pipe.recv()
            pipe.send(_run(job, pipe))


def _run(job: Job, pipe: Connection) -> News:
    def progress(share: float) -> None:
        pipe.send(News(job.cell, "share", share))

    try:
        _ = job.cell.key  # hashes the code that came with the first such job, if its world is not the simulator
        rows = job.run(job.cell, job.tokens, progress)
        if job.cell.key != job.file.stem:
            raise ValueError("its code was edited while the comparison ran: run the same command again")
        with replacing(job.file) as file:
            rows.write_parquet(file)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        return News(job.cell, "failed", error=_told(error))
    return News(job.cell, "done", 1.0)


def _told(error: Exception) -> str:
    """The error in one line, with the place it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {' '.join(str(error).split())} ({Path(last.filename).name}:{last.lineno})"


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started meanwhile never hear Ctrl-C, not even while they import; we hear it when they are started.

    A child has the mask of the thread that starts it. We need a handler too: whatever threads numpy has are not masked,
    and a start that is cut short leaves a child that complains.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    resource_tracker.ensure_running()  # whose own start would lift the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if heard:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables that a process started meanwhile inherits."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
