"""Run TRL's own tests of its GRPO trainer with ours in place of theirs, and print what differs from stock.

    python tests/trl_suite/run.py FOLDER [--stand-ins] [--output TABLE.md] [pytest arguments]

FOLDER is ``tests`` of a checkout of TRL whose version fits the installed one (``git clone --branch v1.16.0
https://github.com/huggingface/trl``); nothing of it is part of this repository. The tests ask the model hub for tiny
models. Without a hub, ``--stand-ins`` makes random ones of the same architecture under the same names; tests that ask
for others fail with stock TRL as well, and are left out of the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RUNS = ("stock", "uniform", "default")


def main() -> int:
    """Run the tests three times and print the table; 1 if ``uniform`` fails where stock passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder tests of a checkout of TRL")
    parser.add_argument("--stand-ins", action="store_true", help="make models and data in place of the hub's")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options, rest = parser.parse_known_args()
    suite = options.folder.resolve() / "test_grpo_trainer.py"
    if not suite.is_file():
        parser.error(f"{options.folder} has no test_grpo_trainer.py: give the folder tests of a checkout of TRL")
    with tempfile.TemporaryDirectory(prefix="trl-suite-") as folder:
        work = Path(folder)
        if options.stand_ins:
            from stand_ins import make_stand_ins  # needs what the tests need

            make_stand_ins(work)
        found = {which: run(which, suite, work, rest, options.stand_ins) for which in RUNS}
    text = table(found)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    return int(any(fails(found, test, "uniform") for test in found["stock"]))


def run(which: str, suite: Path, work: Path, rest: list[str], offline: bool) -> dict[str, dict[str, str]]:
    """Outcome and message of each test."""
    out = work / f"{which}.jsonl"
    paths = [str(HERE), str(suite.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "KNAPSACK_SUITE": which, "KNAPSACK_SUITE_OUT": str(out), "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }  # fmt: skip
    if offline:
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "cache")}
    # -c: neither the settings of this repository nor TRL's.
    command = [sys.executable, "-m", "pytest", "-p", "knapsack_suite", "-c", os.devnull, "-q", "--rootdir", str(work)]
    subprocess.run([*command, str(suite), *rest], cwd=work, env=environment, check=False)
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return {line["test"].partition("::")[2]: line for line in map(json.loads, lines)}


def fails(found: dict[str, dict[str, Any]], test: str, which: str) -> bool:
    """Whether a test passes with stock TRL and not with this run."""
    passed = found["stock"][test]["outcome"] == "passed"
    return passed and found[which].get(test, {"outcome": "missing"})["outcome"] != "passed"


def table(found: dict[str, dict[str, dict[str, str]]]) -> str:
    """How many tests ended how, and each that passes with stock TRL alone; Markdown."""
    lines = ["| run | passed | failed | skipped |", "|---|---|---|---|"]
    for which in RUNS:
        counts = Counter(each["outcome"] for each in found[which].values())
        lines.append(f"| {which} | {counts['passed']} | {counts['failed']} | {counts['skipped']} |")
    lines += ["", "| passes with stock TRL alone | run | message |", "|---|---|---|"]
    for test in found["stock"]:
        for which in RUNS[1:]:
            if fails(found, test, which):
                message = found[which].get(test, {}).get("message", "not run").replace("|", "\\|")
                lines.append(f"| `{test}` | {which} | {message} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
