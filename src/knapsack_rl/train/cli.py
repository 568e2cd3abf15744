"""``knapsack-rl train``: its options, and what happens in which order. Nothing heavy is imported for ``--help``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knapsack_rl.tasks.errors import TaskError
from knapsack_rl.train.job import FINISHED, INTERRUPTED, TRACE, Job, check_same, free_output, new_job, resumable_output

if TYPE_CHECKING:
    from rich.console import Console

ARM_FAILED = 1
INTERRUPTED_BY_USER = 130
_EPILOG = """\
All fields of TRL's GRPOConfig and of KnapsackGRPOConfig are options too, in TRL's own names: --learning_rate 1e-5
--num_generations 8 --max_generations 64 ... ; --config takes the same names, and those above, from a YAML file.
Without arguments: the embedded job, which trains a small language model twice from the same start, with uniform groups
and with the knapsack, and compares them.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Our own options; what was not given is absent from the namespace."""
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.argument_default = argparse.SUPPRESS
    what = parser.add_argument_group("what to train on what")
    add = what.add_argument
    add("--model", metavar="NAME", help="embedded (default), smollm2, a local folder, or a Hugging Face id")
    add(
        "--dataset",
        metavar="NAME",
        help="embedded, reasoning-gym:TASK[?key=value&...], a .jsonl/.json/.parquet/.csv file, or a hub id[:config]",
    )
    add("--dataset-split", metavar="SPLIT", help="split of a hub data set (default: train)")
    add("--prompt-column", metavar="NAME", help="column that holds the prompts (default: prompt)")
    add("--answer-column", metavar="NAME", help="column that holds the answers (default: answer)")
    add("--system-prompt", metavar="TEXT", help="put before every prompt of a conversational model")
    add("--reward", metavar="NAME", help="exact, math, or FILE.py:FUNCTION (default: the data set's own scorer)")
    how = parser.add_argument_group("how")
    add = how.add_argument
    add(
        "--arms",
        metavar="A,B",
        type=_names,
        help="uniform, knapsack, paper (default: uniform,knapsack; real models: knapsack)",
    )
    add("--steps", metavar="N", type=int, help="optimizer steps (default: 180; real models: TRL's num_train_epochs)")
    add("--seed", metavar="N", type=int, help="of data, order and samples (default: 0)")
    add("--config", metavar="FILE", type=Path, help="YAML file with options; flags win over it")
    add(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="where everything goes (default: the first free of runs/train, runs/train-2, ...)",
    )
    add("--resume", action="store_true", help="go on with an interrupted run: the one in --output, or the latest")


def run(namespace: argparse.Namespace, extra_argv: Sequence[str]) -> int:
    """Train, show, compare.

    Args:
        namespace: what `add_arguments` parsed.
        extra_argv: everything else: fields of TRL's configuration.

    Returns:
        Exit status: 0; 1 if an arm failed; 130 if the run was interrupted.

    Raises:
        TaskError: whatever the user can mend, in one line.
    """
    from knapsack_rl.train.options import check, read_yaml, trainer_fields
    from knapsack_rl.train.quiet import quiet_frameworks

    quiet_frameworks()
    given = vars(namespace)
    config = read_yaml(given["config"]) if "config" in given else {}
    options, rest = _own_options(given, config)
    trainer = trainer_fields(extra_argv, rest)
    output = given.get("output") or (Path(config["output"]) if "output" in config else None)
    if given.get("resume", False):
        output = resumable_output(output)
        job = Job.load(output)
        check_same(job, options, trainer, output)
    else:
        job = new_job(options, trainer)
        if trainer:
            check(job.trainer_fields())
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            output = free_output(output)
            job.save(output)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _one_of_many(job, output, resume=given.get("resume", False))
    assert output is not None
    return _all_arms(job, output, resume=given.get("resume", False))


def _all_arms(job: Job, output: Path, *, resume: bool) -> int:
    """Run the arms as subprocesses, then print the table and write the report."""
    from rich.console import Console

    from knapsack_rl.train.display import say
    from knapsack_rl.train.launch import prepare_model, run_arms
    from knapsack_rl.train.summary import print_summary

    console = Console()
    open_arms = [arm for arm in job.arms if not (resume and _finished(output / arm / TRACE))]
    if open_arms:
        prepare_model(job, console)
        say(console, f"{job.model} on {job.dataset}, arms: {', '.join(open_arms)}; everything goes to {output}/")
    ended = run_arms(job, output, open_arms, resume, console)
    print_summary(console, output, job.arms)
    _write_report(job, output, console)
    if any(status not in (FINISHED, INTERRUPTED) for status in ended.values()):
        return ARM_FAILED
    if len(ended) < len(open_arms) or any(status != FINISHED for status in ended.values()):
        say(console, f"interrupted; go on with: knapsack-rl train --resume --output {output}")
        return INTERRUPTED_BY_USER
    return 0


def _one_of_many(job: Job, output: Path | None, *, resume: bool) -> int:
    """Under ``torchrun``: this process's share of a single arm; TRL shows the progress."""
    from knapsack_rl.train.arm import run_arm
    from knapsack_rl.train.callbacks import StopRequest

    if output is None:
        raise TaskError("under torchrun say where to: --output FOLDER")
    arm = job.arms[-1]
    if len(job.arms) > 1:
        raise TaskError(f"torchrun trains one arm at a time: --arms {arm}")
    if os.environ.get("RANK", "0") == "0" and not resume:
        job.save(free_output(output))
    stop = StopRequest()
    stop.listen()
    status = run_arm(job, arm, output / arm, stop, resume)
    return 0 if status == FINISHED else INTERRUPTED_BY_USER


def _own_options(given: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the job from flags and file, flags first; and the keys of the file that are not the job's."""
    names = {field.name for field in fields(Job)} - {"trainer"}
    options = {name: value for name, value in {**config, **given}.items() if name in names}
    if isinstance(options.get("arms"), str | list):
        options["arms"] = _names(options["arms"])
    rest = {
        name: value
        for name, value in config.items()
        if name not in names and name not in ("output", "resume", "config")
    }
    return options, rest


def _names(text: str | Sequence[str]) -> tuple[str, ...]:
    parts = text.split(",") if isinstance(text, str) else text
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _finished(trace: Path) -> bool:
    from knapsack_rl.trace import read_trace

    return trace.is_file() and read_trace(trace).ended == "finished"


def _write_report(job: Job, output: Path, console: Console) -> None:
    from knapsack_rl.trace import read_trace
    from knapsack_rl.train.display import say

    traces = [output / arm / TRACE for arm in job.arms if (output / arm / TRACE).is_file()]
    traces = [trace for trace in traces if read_trace(trace).steps]
    if not traces:
        return
    try:
        from knapsack_rl.report import write_report

        say(console, f"report: {write_report(traces, output / 'report.html')}")
    except ImportError as error:
        # The run is what matters; its page can be made later.
        say(console, f"no report: {error} (pip install 'knapsack-rl[report]', then knapsack-rl report)")
