"""Runs many trials, in local processes or as Ray tasks. A trial that fails is reported, and the others continue.

Rows come back to this process, which writes one file per trial: finished trials are kept, however the run ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import polars as pl

from knapsack_arena.compare.trials import Progress, Trial, fingerprint, run_trial
from knapsack_rl.files import replacing

# Arrays of a few thousand numbers gain nothing from threads, and processes with two threads each slow one another down.
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "POLARS_MAX_THREADS"), "1"
)
_POLL_SECONDS: Final = 0.1
_CONNECT_SECONDS: Final = 10.0
# Ray's own limit on task retries: a crashed worker process costs one retry.
_RAY_RETRIES: Final = 1
# Messages of a worker process to its parent, put here when the worker starts.
_messages: list[SimpleQueue[tuple[str, float]]] = []


@dataclass(frozen=True)
class Job:
    """A trial to run, the file for its rows (named by the trial's key), and its budget in tokens if it has one."""

    trial: Trial
    file: Path
    tokens: int | None = None


@dataclass(frozen=True)
class TrialEvent:
    """A change of a trial's state: ``progress`` (``share`` of its budget is spent), ``done``, or ``failed``."""

    trial: Trial
    kind: Literal["progress", "done", "failed"]
    share: float = 0.0
    error: str = ""


class Backend(Protocol):
    """Runs jobs somewhere."""

    def run(self, jobs: Sequence[Job]) -> Generator[TrialEvent, None, None]:
        """Run jobs; ends when each is done or has failed. Closing the generator stops what is running."""
        ...


def make_backend(workers: int, ray: str | None = None) -> Backend:
    """Local processes, or a Ray cluster where an address is given.

    Raises:
        ValueError: fewer than one worker, or Ray is not installed.
    """
    return Processes(workers) if ray is None else RayTasks(ray, workers)


class Processes:
    """Runs jobs in a pool of local processes.

    Where a process dies, the pool is replaced, and each job that was running runs again alone; it fails if its process
    dies again.
    """

    def __init__(self, workers: int) -> None:
        """Use this many processes.

        Raises:
            ValueError: fewer than one.
        """
        _check_workers(workers)
        self.workers = workers

    def run(self, jobs: Sequence[Job]) -> Generator[TrialEvent, None, None]:
        """Run jobs; ends when each is done or has failed."""
        waiting: deque[Job] = deque(jobs)
        with _environment(_ONE_THREAD):
            while waiting:
                interrupted, _ = yield from _run_in_pool(waiting, min(self.workers, len(waiting)))
                for job in interrupted:
                    died, exit_code = yield from _run_in_pool(deque([job]), 1)
                    if died:
                        yield TrialEvent(job.trial, "failed", error=f"its process died with exit code {exit_code}")


class RayTasks:
    """Runs jobs as tasks of a Ray cluster: the same trials, and the same files, written by this process.

    Rule files, traces and base models must exist at the same paths on all hosts; base models are built where they lack.
    """

    def __init__(self, address: str, workers: int) -> None:
        """Use a cluster.

        Args:
            address: ``local`` starts Ray on this machine; ``auto`` or ``host:port`` connects to a running cluster.
            workers: tasks at a time of a local Ray; a running cluster has its own number of CPUs.

        Raises:
            ValueError: fewer than one worker, or Ray is not installed.
        """
        _check_workers(workers)
        try:
            import ray
        except ImportError as error:
            raise ValueError(f"--ray needs Ray ({error}): pip install 'knapsack-rl[ray]'") from error
        self.ray: Any = ray
        self.address, self.workers = address, workers

    def run(self, jobs: Sequence[Job]) -> Generator[TrialEvent, None, None]:
        """Run jobs; ends when each is done or has failed. Progress within a trial is not reported."""
        if not jobs:
            return
        self._connect()
        try:
            task = self.ray.remote(num_cpus=1, max_retries=_RAY_RETRIES)(_rows_or_error)
            running = {task.remote(job): job for job in jobs}
            while running:
                (done,), _ = self.ray.wait(list(running), num_returns=1)
                yield self._event(running.pop(done), done)
        finally:
            self.ray.shutdown()

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address == "local":
            options |= {"num_cpus": self.workers, "include_dashboard": False}
        host, colon, port = self.address.rpartition(":")
        try:
            if colon:  # Ray itself tries for two minutes, and then ends the process
                socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
            self.ray.init(address=self.address, runtime_env={"env_vars": _ONE_THREAD}, **options)
        except (OSError, ValueError) as error:
            raise ValueError(f"there is no Ray cluster at {self.address!r}: {_one_line(str(error))}") from error

    def _event(self, job: Job, done: Any) -> TrialEvent:
        try:
            found = self.ray.get(done)
        except self.ray.exceptions.RayError as error:
            found = f"its process died: {type(error).__name__}"
        return _finished(job, found)


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise ValueError(f"{workers} workers run nothing: use at least 1")


def _run_in_pool(waiting: deque[Job], count: int) -> Generator[TrialEvent, None, tuple[list[Job], int | None]]:
    """Run jobs from the front of a queue until it is empty or a process dies.

    Returns:
        The jobs that were running when a process died, and the exit code of the process if there was one only.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.SimpleQueue()
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(messages,))
    running: dict[Future[pl.DataFrame | str], Job] = {}
    processes: set[BaseProcess] = set()
    with _deferred_interrupts() as raise_if_interrupted:
        try:
            while waiting or running:
                raise_if_interrupted()
                while waiting and len(running) < count:
                    with _masked_interrupts():
                        future = pool.submit(_rows_or_error, waiting[0], True)
                        running[future] = waiting.popleft()
                        processes = set(multiprocessing.active_children()) - before
                done, _ = wait(running, _POLL_SECONDS, FIRST_COMPLETED)
                yield from _progress(messages, running.values())
                for future in done:
                    found = future.result()
                    yield _finished(running.pop(future), found)
        except BrokenProcessPool:
            pool.shutdown()  # waits for the processes; only then are all exit codes known
            codes = [process.exitcode for process in processes]
            return list(running.values()), codes[0] if len(codes) == 1 else None
        finally:
            if running:
                for process in processes:
                    process.terminate()
            pool.shutdown(cancel_futures=True)
    return [], None


def _progress(messages: SimpleQueue[tuple[str, float]], jobs: Any) -> Iterator[TrialEvent]:
    trials = {job.file.stem: job.trial for job in jobs}
    while not messages.empty():
        key, share = messages.get()
        yield TrialEvent(trials[key], "progress", share)


def _finished(job: Job, found: pl.DataFrame | str) -> TrialEvent:
    """Write the rows of a trial to its file, all or nothing; an error in words makes it a failure."""
    if isinstance(found, str):
        return TrialEvent(job.trial, "failed", error=found)
    with replacing(job.file) as file:
        found.write_parquet(file)
    return TrialEvent(job.trial, "done", 1.0)


def _start_worker(messages: SimpleQueue[tuple[str, float]]) -> None:
    """Prepare a worker process: Ctrl-C is the parent's, and the worker ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _messages[:] = [messages]
    fingerprint()  # hashes the code as it is imported now; `_rows_or_error` compares


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _rows_or_error(job: Job, reports: bool = False) -> pl.DataFrame | str:
    """Run a job in a worker: its rows, or the error in one line."""

    def report(share: float) -> None:
        _messages[0].put((job.file.stem, share))

    progress: Progress = report if reports else lambda share: None
    try:
        _ = job.trial.key  # hashes the testbed's code before the first trial on it
        rows = run_trial(job.trial, job.tokens, progress)
        if job.trial.key != job.file.stem:
            raise ValueError("its code was edited while the comparison ran: run the same command again")
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {_one_line(str(error))} ({Path(last.filename).name}:{last.lineno})"
    return rows


def _one_line(text: str) -> str:
    return " ".join(text.split())


@contextlib.contextmanager
def _deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Defer Ctrl-C: call the function where it may be raised.

    Raised inside `concurrent.futures`, it could leave a lock held, and the pool would never end.
    """
    received: list[int] = []

    def raise_if_received() -> None:
        if received:
            raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job ignores it
        yield raise_if_received
        return
    handler = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield raise_if_received
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _masked_interrupts() -> Iterator[None]:
    """Start processes that never receive Ctrl-C, not even while they import: they inherit the signal mask."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would lift the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started in the block."""
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
