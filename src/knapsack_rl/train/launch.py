"""The parent process of a job: makes the base model, starts each run in a process of its own, shows and stops them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from knapsack_rl.console.text import one_line
from knapsack_rl.files import complete_lines
from knapsack_rl.tasks.models import model_path
from knapsack_rl.train.job import FINISHED, INTERRUPTED, Job
from knapsack_rl.train.progress import ProgressDisplay, follow_runs, say

POLL_SECONDS: Final = 0.25
LOG: Final = "log.txt"


@dataclass
class RunProcess:
    """The process of one run.

    Attributes:
        rule: the rule of the run.
        process: the process; its standard input stays open until the parent ends.
        log: file of its output.
        read: bytes of the log that were looked through for warnings; those of an earlier start are not shown again.
    """

    rule: str
    process: subprocess.Popen[bytes]
    log: Path
    read: int

    def last_line(self) -> str:
        """The last line of its log that is not empty."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else "its log is empty"

    def new_warnings(self) -> list[str]:
        """What this library has logged since the last call, line by line: the log is a file that few open."""
        found = []
        for end, line in complete_lines(self.log, self.read):
            self.read = end
            logger, colon, message = line.decode(errors="replace").strip().partition(": ")
            if colon and logger.startswith("knapsack_rl."):
                found.append(one_line(message))
        return found


class StopSignal:
    """Counts SIGINT and SIGTERM: the first lets the runs stop after their step, the second kills them."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Handle the signals inside the context."""
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, *_: Any) -> None:
        self.count += 1


def prepare_model(job: Job, console: Console) -> None:
    """Make the base model now if the cache has none, so that the runs do not each make it."""
    with console.status("") as status:
        last_tenth = -1

        def progress(done: int, total: int) -> None:
            nonlocal last_tenth
            status.update(f"warm-starting the base model (once; it is cached): {done}/{total} steps")
            if not console.is_terminal and 5 * done // total > last_tenth:
                last_tenth = 5 * done // total
                say(console, f"warm-starting the base model (once; it is cached): {done}/{total} steps")

        model_path(job.model, progress)


def run_rules(job: Job, output: Path, rules: Sequence[str], resume: bool, console: Console) -> dict[str, int]:
    """Train with each rule until the runs end or a signal stops them.

    Args:
        job: the recorded job.
        output: its folder.
        rules: the rules to train with.
        resume: continue from the last checkpoints.
        console: shows the progress.

    Returns:
        Exit status of each run that was started, by rule.
    """
    waiting, running, ended = list(rules), list[RunProcess](), dict[str, int]()
    together = min(len(rules), _cores()) if job.tiny else 1
    progress = follow_runs(output, rules)
    with StopSignal().listening() as stop, ProgressDisplay(console, progress) as display:
        signalled = 0
        while running or (waiting and not stop.count):
            while waiting and len(running) < together and not stop.count:
                running.append(_start(job, output, waiting.pop(0), resume))
            if stop.count > signalled:
                signalled = stop.count
                _send(running, signal.SIGTERM if signalled == 1 else signal.SIGKILL)
                display.say("stopping after this step, with a checkpoint; Ctrl-C again kills the runs")
            time.sleep(POLL_SECONDS)
            display.update()
            over = [run for run in running if run.process.poll() is not None]
            for run in running:  # after the look at the processes, so that the last warning of one that is over is seen
                for warning in run.new_warnings():
                    say(console, f"{run.rule}: {warning}")
            for run in over:
                running.remove(run)
                status = run.process.returncode
                # A run that ends after a stop was requested, by force included, can be resumed.
                ended[run.rule] = INTERRUPTED if stop.count and status != FINISHED else status
                if ended[run.rule] not in (FINISHED, INTERRUPTED):
                    say(console, f"{run.rule} failed: {run.last_line()} (log: {run.log})")
                    waiting.clear()
                    _send(running, signal.SIGTERM)  # there is nothing to compare; the other runs can be resumed
        display.update()
    return ended


# Threads do not speed up a model of this size, and two processes of two threads each slow each other down on two cores.
# The embedded job needs no file of the hub.
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _start(job: Job, output: Path, rule: str, resume: bool) -> RunProcess:
    folder = output / rule
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "knapsack_rl.train.single_run",
        str(output),
        rule,
        *(["--resume"] if resume else []),
    ]
    log = folder / LOG
    with log.open("ab") as sink:
        before = sink.tell()
        # In a session of its own, so that Ctrl-C reaches the parent only, which passes it on once. The pipe on standard
        # input closes when the parent ends.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(_ONE_THREAD if job.tiny else {})},
        )
    return RunProcess(rule, process, log, before)


def _send(running: Sequence[RunProcess], number: signal.Signals) -> None:
    for run in running:
        if run.process.poll() is None:
            run.process.send_signal(number)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
