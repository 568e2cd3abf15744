"""Random command lines and files, valid and hostile, run in this process; as a program: many of them.

python tests/command_lines.py --tries 10000 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from knapsack_rl.__main__ import DEFECT, main

ESCAPES = "\x1b]0;x\x07\x1b[31m\u202e\udcff"
NUMBERS = (
    "0", "1", "2", "3", "8", "16", "-1", "-0", "1.5", "nan", "inf", "-inf", "1e300", "1e-320", "", " 7", "7 ", "1_0",
    "0x10", "\u0663", "1" + "0" * 20, "9" * 400, "9" * 5000, "true", "None", "2147483648", "4294967296", ESCAPES,
)  # fmt: skip
WORDS = ("", "-", "--", "---", "=", "all", "uniform", "beta,paper", ",", "a:b", "no.py:rule", ":", "\x00", "*", ESCAPES)
CELLS = (
    "0.5", "0", "1", "2", "-1", "nan", "inf", "1e400", "5e-324", "0,5", "1,250", "True", "false", "x", "",
    "1" + "0" * 400, '"', "'", "\x00", "[1, 0]", "[1", '[{"role": "user", "content": "q"}]', ESCAPES.strip("\udcff"),
)  # fmt: skip
COLUMNS = (
    "id", "prompt_id", "p", "pass_rate", "successes", "attempts", "count", "prompt", "reward", "rewards", "tokens",
    "step", "", "\x1b[31mred",
)  # fmt: skip
JSON = (
    "0.5", "1", "true", "null", "NaN", "-1", "1" + "0" * 400, "9" * 5000, '"x"', '"\\ud800"', "[]", "{}",
    "[1, 0, null]", "[" * 3000 + "]" * 3000, '[{"role": "user", "content": "q"}]', '"\\u001b[31m"', "1e999",
)  # fmt: skip
RULE_FILE = """
from knapsack_rl.rules import expected_value
def good(forecast, budget, low, high):
    return expected_value(forecast, budget, low, high)
def bad(forecast, budget, low, high):
    return {}["missing"]
def nothing(forecast, budget, low, high):
    return None
class Broken:
    def __init__(self):
        raise KeyError("broken")
"""


@dataclass(frozen=True)
class Fault:
    """A command line that ended as none may."""

    words: tuple[str, ...]
    reason: str


def run_all(tries: int, seed: int, folder: Path) -> list[Fault]:
    """Run random command lines; return those that end as none may. ``folder`` must be empty, and is written to."""
    pick = random.Random(seed)
    files = _files(pick, folder)
    faults = []
    with _without_long_work(), contextlib.chdir(folder):
        for number in range(tries):
            if number % 100 == 99:
                files = _files(pick, folder)
            words, fed = _command_line(pick, files), pick.choice([b"", _table(pick)])
            reason = _fault(words, fed)
            if reason is not None:
                faults.append(Fault(tuple(words), reason))
    return faults


def _fault(words: list[str], fed: bytes) -> str | None:  # noqa: PLR0911
    """What is wrong with the end of a command line; None if it ended as it should."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        patch("sys.stdin", io.TextIOWrapper(io.BytesIO(fed))),
    ):
        try:
            status: object = main(words)
        except SystemExit as stop:
            status = stop.code
        except BaseException as error:
            return f"raised {type(error).__name__}: {error}"
    out.flush()
    err.flush()
    told, data = (stream.buffer.getvalue().decode("utf-8", "replace") for stream in (err, out))  # type: ignore[attr-defined]
    if status == DEFECT:
        return told
    if status not in (0, 1, 2):
        return f"ended with {status}"
    if "Traceback" in told + data:
        return "showed a traceback"
    if status == 2 and (told.count("\n") != 1 or not told.startswith("knapsack-rl: error: ") or data):
        return f"was refused with {told!r} and {data[:200]!r}"
    if not all(line.isprintable() for line in told.split("\n")):
        return f"showed control characters: {told!r}"
    return None


def _command_line(pick: random.Random, files: list[str]) -> list[str]:
    """The words of a command line: mostly a command with its own options, and sometimes anything."""
    command = pick.choice(
        ["allocate"] * 4 + ["replay"] * 3 + ["report", "train", "compare", "lab", "verl-args", "fly", "alocate", ""]
    )
    options = {
        "allocate": [
            "--budget", "--average", "--min", "--max", "--min-group", "--pool", "--rule",
            "--format", "--output", "--to", "--rows",
        ],
        "replay": [
            "--rules", "--seed", "--steps", "--min", "--max", "--prompts", "--format", "--groups", "--average",
            "--success-threshold", "--output",
        ],
        "report": ["--output"],
        "train": [
            "--model", "--dataset", "--reward", "--rules", "--steps", "--seed", "--config", "--output",
            "--average", "--min", "--max", "--min-group", "--half-life", "--success-threshold", "--weighting",
            "--report_to",
            "--learning_rate", "--num_generations", "--per_device_train_batch_size", "--pool", "--explian",
        ],
        "compare": ["--rules", "--presets", "--seeds", "--prompts", "--groups", "--average", "--steps", "--output"],
        "lab": ["--rules", "--regimes", "--seeds", "--first-seed", "--steps", "--workers", "--output"],
        "verl-args": [
            "--rule", "--pool", "--min", "--max", "--weighting", "--success-threshold", "--half-life", "--mode",
        ],
    }  # fmt: skip
    words = [command]
    if command in ("allocate", "replay", "report"):
        words += [pick.choice(files) for _ in range(pick.choice([0, 1, 1, 1, 1, 2]))]
    for _ in range(pick.choice([0, 0, 1, 1, 2, 3, 5])):
        option = pick.choice(options.get(command, ["--x"]) + ["--explain"] * (command == "allocate"))
        words.append(option)
        if option != "--explain":
            words.append(_value(pick, option, files))
    if pick.random() < 0.05:
        words.insert(
            pick.randrange(len(words) + 1),
            pick.choice([*WORDS, *NUMBERS, "--version", "--help", "--print-completion", "-x"]),
        )
    return words


def _value(pick: random.Random, option: str, files: list[str]) -> str:
    likely = {
        "--rule": ("beta", "paper", "uniform", "calibrated"),
        "--rules": ("uniform,beta", "calibrated", "rule.py:good", "rule.py:bad", "rule.py:nothing", "rule.py:Broken"),
        "--format": ("csv", "jsonl", "parquet"),
        "--to": ("csv", "jsonl", "parquet"),
        "--output": (
            "out.csv", "out.jsonl", "out.parquet", "out.tsv", "out.json", ".", "no/where.csv", "/dev/null", "loop/x",
        ),
        "--config": (*files, "config.yaml"),
        "--presets": ("easy", *files),
        "--reward": ("exact", "rule.py:good", "rule.py:none", "no.module:x"),
        "--model": ("embedded", "embedded?steps=x", "./none"),
        "--dataset": ("embedded", "embedded?train=x", *files),
    }  # fmt: skip
    if option in likely and pick.random() < 0.7:
        return pick.choice(likely[option])
    return pick.choice([*NUMBERS, *WORDS, *NUMBERS[:6] * 4])


def _files(pick: random.Random, folder: Path) -> list[str]:
    """Write new files into the folder; return their names, with those of others that do not exist or are no files."""
    names = [
        f"{number}{suffix}" for number, suffix in enumerate((".csv", ".csv", ".tsv", ".jsonl", ".json", ".parquet", ""))
    ]
    for name in names:
        (folder / name).write_bytes(_table(pick, name))
    (folder / "rule.py").write_text(RULE_FILE)
    (folder / "config.yaml").write_text(
        f"{pick.choice(['steps', 'model', 'rules', 'output', 'x', 'seed'])}: {pick.choice(JSON[:9])}\n"
    )
    (folder / "trace.jsonl").write_text('{"kind":"run","version":2}\n' + "".join(
        f'{{"kind":"step","step":{pick.choice(JSON)},"ids":{pick.choice(JSON)}}}\n' for _ in range(pick.randrange(3))
    ))  # fmt: skip
    if not (folder / "loop").is_symlink():
        (folder / "loop").symlink_to("loop")
    return [*names, "trace.jsonl", "missing.csv", ".", "loop", "rule.py", "\x1b[31m.csv"]


def _table(pick: random.Random, name: str = "") -> bytes:
    """A table, more or less: often a right one, with wrong cells, torn, or not a table at all."""
    if pick.random() < 0.08:
        return pick.choice(
            [b"", b"\n", b"PAR1", b"\xff\xfe", b"{", b"[", b"\x00" * 9, b'"', bytes(pick.choices(range(256), k=40))]
        )
    columns = pick.choice(
        [["id", "p"], ["id", "successes", "attempts"], ["prompt", "rewards"], ["prompt", "reward", "step"]]
    )
    if pick.random() < 0.2:
        columns = pick.sample(COLUMNS, pick.randrange(1, 5))
    good = {"p": "0.5", "successes": "1", "attempts": "4", "rewards": "[1, 0, 1, 0]", "reward": "1", "step": "0"}
    rows = range(pick.choice([0, 1, 2, 5, 9]))
    wrong = pick.random() < 0.5
    if name.endswith((".jsonl", ".json")):
        cells = lambda i, c: pick.choice(JSON) if wrong and pick.random() < 0.2 else good.get(c, f'"q{i}"')  # noqa: E731
        made = ["{" + ", ".join(f'"{c.strip(chr(27))}": {cells(i, c)}' for c in columns) + "}" for i in rows]
        return (f"[{', '.join(made)}]" if pick.random() < 0.3 else "\n".join(made)).encode()
    between = pick.choice(",;\t")
    cells = lambda i, c: pick.choice(CELLS) if wrong and pick.random() < 0.2 else good.get(c, f"q{i}")  # noqa: E731
    quoted = [[f'"{cells(i, c)}"' if c == "rewards" else cells(i, c) for c in columns] for i in rows]
    return "\n".join(between.join(row) for row in [columns, *quoted]).encode("utf-8", "surrogatepass")


@contextlib.contextmanager
def _without_long_work() -> Iterator[None]:
    """What follows the checks of a command's arguments is left out: training, comparisons, waiting for a hub."""
    with contextlib.ExitStack() as stack:
        replaced: list[tuple[str, Callable[..., Any]]] = [
            ("knapsack_rl.train.command._run_job", lambda *a, **k: 0),
            ("knapsack_arena.compare.experiment.run_experiment", _stopped),
            ("knapsack_arena.lab.experiment.build_base_models", lambda *a, **k: None),
        ]
        for name, stand_in in replaced:
            module, _, attribute = name.rpartition(".")
            stack.enter_context(patch.object(importlib.import_module(module), attribute, stand_in))
        yield


def _stopped(*_: object, **__: object) -> None:
    raise ValueError("the comparison would begin here")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = run_all(given.tries, given.seed, Path(place))
    kinds: dict[str, Fault] = {}
    for fault in found:
        kinds.setdefault(fault.reason[:90], fault)
    for fault in kinds.values():
        print(f"{fault.words!r}\n    {fault.reason[:600]}")
    print(f"{given.tries:,} command lines, seed {given.seed}: {len(found)} faults")
    sys.exit(bool(found))
