"""The parent of a job: prepares the base model, starts each arm in a process of its own, shows and stops them."""

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
from typing import IO, Any, Final

from rich.console import Console

from knapsack_rl.tasks.models import model_path
from knapsack_rl.train.display import Display, say
from knapsack_rl.train.job import FINISHED, INTERRUPTED, Job
from knapsack_rl.train.progress import follow_arms

POLL_SECONDS: Final = 0.25
LOG: Final = "log.txt"


@dataclass
class ArmProcess:
    """One arm's process.

    Attributes:
        name: the arm.
        process: the running Python; its standard input stays open as long as the parent lives.
        log: where its output goes.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """The last line of its log that says anything."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else "it said nothing"


class StopSignal:
    """Counts SIGINT and SIGTERM: one asks the arms to stop, a second one makes them."""

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Take the signals while the context lasts."""
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, *_: Any) -> None:
        self.count += 1


def prepare_model(job: Job, console: Console) -> None:
    """Make the base model now if it has to be made, so that the arms find the same one and do not both make it."""
    with console.status("") as status:
        last_tenth = -1

        def progress(done: int, total: int) -> None:
            nonlocal last_tenth
            status.update(f"warm-starting the base model (once; it is kept): {done}/{total} steps")
            if not console.is_terminal and 5 * done // total > last_tenth:
                last_tenth = 5 * done // total
                say(console, f"warm-starting the base model (once; it is kept): {done}/{total} steps")

        model_path(job.model, progress)


def run_arms(job: Job, output: Path, arms: Sequence[str], resume: bool, console: Console) -> dict[str, int]:
    """Run arms to their end, or to the end that a signal asks for.

    Args:
        job: the recorded job.
        output: its folder.
        arms: which arms to run.
        resume: go on from their last checkpoints.
        console: where progress is shown.

    Returns:
        Exit status of each arm that was started.
    """
    waiting, running, ended = list(arms), list[ArmProcess](), dict[str, int]()
    together = len(arms) if job.tiny and _cores() >= 2 else 1
    progress = follow_arms(output, arms)
    with StopSignal().listening() as stop, Display(console, progress) as display:
        asked = 0
        while running or (waiting and not stop.count):
            while waiting and len(running) < together and not stop.count:
                running.append(_start(job, output, waiting.pop(0), resume))
            if stop.count > asked:
                asked = stop.count
                _ask(running, signal.SIGTERM if asked == 1 else signal.SIGKILL)
                display.say("stopping after this step, with a checkpoint; Ctrl-C again gives up at once")
            time.sleep(POLL_SECONDS)
            display.update()
            for arm in [arm for arm in running if arm.process.poll() is not None]:
                running.remove(arm)
                status = arm.process.returncode
                # However an arm ends after a stop was asked for, and be it by force: it can be gone on with.
                ended[arm.name] = INTERRUPTED if stop.count and status != FINISHED else status
                if ended[arm.name] not in (FINISHED, INTERRUPTED):
                    say(console, f"{arm.name} failed: {arm.last_words()} (log: {arm.log})")
                    waiting.clear()
                    _ask(running, signal.SIGTERM)  # half a comparison is none; what was done can be resumed
        display.update()
    return ended


def _start(job: Job, output: Path, arm: str, resume: bool) -> ArmProcess:
    folder = output / arm
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "knapsack_rl.train.arm", str(output), arm, *(["--resume"] if resume else [])]
    log = folder / LOG
    with log.open("ab") as sink:
        process = _popen(command, sink, {**os.environ, **(_ONE_THREAD if job.tiny else {})})
    return ArmProcess(arm, process, log)


# A model this small gains nothing from threads, and two processes of two threads on two cores starve each other. What
# is on this machine suffices, so the hub is not asked.
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _popen(command: Sequence[str], sink: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches the parent alone, which passes it on once. An open pipe on standard input
    # tells the child when the parent has died.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True, env=environment
    )


def _ask(running: Sequence[ArmProcess], number: signal.Signals) -> None:
    for arm in running:
        if arm.process.poll() is None:
            arm.process.send_signal(number)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
