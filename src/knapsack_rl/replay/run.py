"""The replay from end to end: source, rules, steps, tables, files."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.progress import Progress

from knapsack_rl.entrants import Setting
from knapsack_rl.loading import resolve
from knapsack_rl.replay.game import RECORDED, Player
from knapsack_rl.replay.output import StepRows
from knapsack_rl.replay.show import Line, show
from knapsack_rl.replay.stage import Stage, set_stage
from knapsack_rl.replay.tally import Tally

# Columns that the tables need: a narrower terminal wraps them, which is better than numbers without their last digits.
_WIDTH = 150


def replay(options: argparse.Namespace) -> int:
    """What `knapsack-rl replay` does.

    Raises:
        ValueError: a source or a rule that cannot be used, or no rule that could play a single step.
        OSError: a file that cannot be read or written.
    """
    for out in (options.json, options.parquet):
        # Said before a long replay, not after it.
        if out is not None and not out.parent.is_dir():
            raise ValueError(f"{out}: the folder {out.parent} does not exist")
        if out is not None and out.is_dir():
            raise ValueError(f"{out} is a folder: name a file")
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress, StepRows() as rows:
        stage = set_stage(options, lambda path: progress.open(path, "rb", description="reading"))
        players = make_players(options.rules, stage.setting)
        tallies = play(stage, players, rows, progress)
        lines = _lines(players, tallies)
        if options.json is not None:
            rows.write_json(options.json, _summary(stage, options, lines))
        if options.parquet is not None:
            rows.write_parquet(options.parquet)
    show(
        Console(width=max(shutil.get_terminal_size().columns, _WIDTH)),
        stage.title,
        lines,
        [*stage.notes, *_notes(tallies)],
    )
    return 0


def make_players(rules: str, setting: Setting) -> list[Player]:
    """The rules of a comma-separated list.

    Raises:
        ValueError: no rule, one that is named twice, or one that cannot enter here.
    """
    names = [name.strip() for name in rules.split(",") if name.strip()]
    if not names:
        raise ValueError("--rules names no rule")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--rules names {name} twice")
    return [Player(name, resolve(name, setting)) for name in names]


def play(stage: Stage, players: Sequence[Player], rows: StepRows, progress: Progress) -> dict[str, Tally]:
    """Play all steps; returns what each rule's came to.

    Raises:
        ValueError: no rule could play a single step.
    """
    tallies: dict[str, Tally] = {}
    task = progress.add_task("replaying", total=stage.steps)
    seen = None
    for name, step, score in stage.play(players):
        tallies.setdefault(name, Tally()).add(score)
        rows.add(name, step, score)
        if step != seen:
            seen = step
            progress.advance(task)
    if not any(player.name in tallies for player in players):
        raise ValueError("; ".join(f"{player.name} {player.out}" for player in players))
    return tallies


def _lines(players: Sequence[Player], tallies: dict[str, Tally]) -> list[Line]:
    recorded = [Line(RECORDED, tallies[RECORDED])] if RECORDED in tallies else []
    return recorded + [Line(player.name, tallies.get(player.name, Tally()), player.out) for player in players]


def _notes(tallies: dict[str, Tally]) -> list[str]:
    means = [tally.means() for tally in tallies.values()]
    notes = ["value and mixed: means over all ways to draw. seen: what one seeded draw brought (docs/replay.md)."]
    if any(mean["frac_short"] > 0 for mean in means):
        notes.append(
            "short: share of the rollouts asked for that were not recorded; they are missing, not made up."
            " Where there are many, the record favours the rule that made it."
        )
    spent = [mean["rollouts"] for mean in means]
    if max(spent) > 1.01 * min(spent):
        notes.append(
            "The rules asked for different numbers of rollouts: what they bought is not to be compared as it is."
        )
    if any(mean["rounds"] > 1 for mean in means):
        notes.append("A rule that looks before it asks for more has no plan to take a mean of: '-'.")
    return notes


def _summary(stage: Stage, options: argparse.Namespace, lines: Sequence[Line]) -> dict[str, Any]:
    rules = [
        {
            "rule": line.name,
            "steps": line.tally.steps,
            "out": line.out,
            "means": line.tally.means(),
            "counts_by_status": line.tally.counts_by_status(),
            "calibration": line.tally.calibration(),
        }
        for line in lines
    ]
    setting = {name: value for name, value in asdict(replace(stage.setting, truth=None)).items() if name != "truth"}
    return {"source": str(options.source), "setting": setting, "rules": rules, "notes": list(stage.notes)}
