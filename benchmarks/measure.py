"""Measure time and memory, and format the table."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Row:
    """One line of the table: a figure with a target, or without one for context."""

    what: str
    measured: float
    unit: str
    most: float | None = None
    least: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the target is met; empty without one."""
        if self.most is None and self.least is None:
            return ""
        met = self.measured <= self.most if self.most is not None else self.measured >= (self.least or 0.0)
        return "pass" if met else "FAIL"

    @property
    def margin(self) -> str:
        """Ratio by which the target is met."""
        if self.most:
            return f"{self.most / self.measured:.1f}x"
        return f"{self.measured / self.least:.1f}x" if self.least is not None else ""

    @property
    def target(self) -> str:
        """The target, as text."""
        if self.most is not None:
            return f"<= {self.most:g} {self.unit}"
        return f">= {self.least:g} {self.unit}" if self.least is not None else ""

    def cells(self) -> tuple[str, ...]:
        """The line, as text."""
        measured = f"{self.measured:,.0f}" if self.measured >= 1000 else f"{self.measured:.3g}"
        return (self.what, self.target, f"{measured} {self.unit}", self.margin, self.verdict, self.note)


def seconds(
    function: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each of ``repeats`` calls, by the wall clock or by ``clock``."""
    times = []
    for _ in range(repeats):
        began = clock()
        function()
        times.append(clock() - began)
    return times


def peak_megabytes() -> float:
    """Peak resident memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts the parent's memory at the time of the fork
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    units = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


def elsewhere(*words: object) -> dict[str, float]:
    """Figures of a subject of `benchmarks.subjects`, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.subjects", *map(str, words)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{cpu}, {os.cpu_count()} cores{load}; Python {platform.python_version()}, numpy {np.__version__}"


def table(rows: Sequence[Row]) -> str:
    """The rows in columns, as Markdown."""
    lines = [("what", "target", "measured", "margin", "", "note"), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)
