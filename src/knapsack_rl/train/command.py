"""`knapsack-rl train`: its options, and the steps of a job. Imports no framework for ``--help``."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, get_args

from knapsack_rl.config import AllocationConfig, Weighting
from knapsack_rl.console.arguments import file_name, whole_number
from knapsack_rl.console.rows import shown
from knapsack_rl.tasks import TaskError
from knapsack_rl.trace import TRACE_NAME, read_trace
from knapsack_rl.train.job import (
    FINISHED,
    INTERRUPTED,
    Job,
    check_same,
    free_output,
    new_job,
    quiet_frameworks,
    resumable_output,
)
from knapsack_rl.train.preflight import ALLOCATION, prepare

if TYPE_CHECKING:
    from rich.console import Console

RUN_FAILED = 1
INTERRUPTED_BY_USER = 130
# Fields of the trainer's configuration that the job sets, and the option to use instead.
OWN: Final = {
    "output_dir": "--output",
    "seed": "--seed",
    "max_steps": "--steps",
    "rule": "--rules",
    "resume_from_checkpoint": "--resume",
    "trace_file": "none: the trace is always OUTPUT/RULE/trace.jsonl",
    **{field: f"--{option}" for option, field in ALLOCATION.items() if option != field},
}
_EPILOG = """\
All other fields of TRL's GRPOConfig and of KnapsackGRPOConfig are options too, under the same names: --learning_rate
1e-5 --max_completion_length 512 --report_to tensorboard,wandb ... ; --config reads these names, and those above, from
a YAML file. Without arguments: the embedded job, which trains a small language model twice from the same start, with
uniform groups and with the rule `calibrated`, and compares the two.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the job; one that was not given is absent from the namespace."""
    parser.epilog = _EPILOG
    parser.argument_default = argparse.SUPPRESS
    add = parser.add_argument_group("model and data").add_argument
    add("--model", metavar="NAME", help="embedded (default), smollm2, a local folder, or a Hugging Face id")
    add(
        "--dataset",
        metavar="NAME",
        help="embedded, reasoning-gym:TASK[?key=value&...], a .jsonl/.json/.parquet/.csv file, or a hub id[:config]",
    )
    add("--dataset-split", metavar="SPLIT", help="split of a hub data set (default: train)")
    add("--prompt-column", metavar="NAME", help="column of the prompts (default: prompt)")
    add("--answer-column", metavar="NAME", help="column of the answers (default: answer)")
    add("--system-prompt", metavar="TEXT", help="first message of every conversation")
    add(
        "--reward",
        metavar="NAME",
        help="exact, math, or FILE.py:FUNCTION, a file of yours that is run (default: that of the data set; else math "
        "where all answers are numbers, and exact where they are texts)",
    )
    add = parser.add_argument_group("allocation").add_argument
    most = AllocationConfig()
    add("--average", metavar="N", type=whole_number(), help=f"rollouts per prompt on average (default: {most.average})")
    add("--pool", metavar="N", type=whole_number(), help="prompts offered for each that is trained on (default: "
        f"{most.pool}, or what the data can fill; 1 for paper and uniform)")  # fmt: skip
    add(
        "--min",
        metavar="N",
        type=whole_number(),
        help="least rollouts of a prompt (default: --min-group, with a pool 0)",
    )
    add(
        "--max", metavar="N", type=whole_number(), help="most rollouts of a prompt (default: 128, or 4 times --average)"
    )
    add("--min-group", metavar="N", type=whole_number(), help="a prompt that is trained on gets at least this many "
        f"(default: {most.min_group})")  # fmt: skip
    add("--half-life", metavar="STEPS", type=float, help="generation steps after which an observation counts half "
        "(default: 4 passes over the data)")  # fmt: skip
    add("--success-threshold", metavar="X", type=float, help="least reward that is a success (default: found)")
    add("--weighting", choices=get_args(Weighting), help="what weighs the same in the loss (default: prompt for "
        "calibrated and beta, else rollout)")  # fmt: skip
    add = parser.add_argument_group("training").add_argument
    add(
        "--rules",
        metavar="A,B",
        type=_names,
        help="rules to train with, one run each: uniform, calibrated, beta, paper "
        "(default: uniform,calibrated; real models: calibrated)",
    )
    add("--steps", metavar="N", type=int, help="optimizer steps (default: 180; real models: TRL's num_train_epochs)")
    add("--seed", metavar="N", type=int, help="seed of data, order and samples (default: 0)")
    add("--config", metavar="FILE", type=file_name, help="YAML file of options; flags take precedence")
    add(
        "--output",
        metavar="FOLDER",
        type=file_name,
        help="folder of all results (default: the first free one of runs/train, runs/train-2, ...)",
    )
    add("--resume", action="store_true", help="resume an interrupted job: the one in --output, or the latest")


def run(namespace: argparse.Namespace, extra_argv: Sequence[str]) -> int:
    """Train, show the progress, and compare the runs.

    Args:
        namespace: the options of `add_arguments`.
        extra_argv: all others: fields of TRL's configuration.

    Returns:
        Exit status: 0; 1 if a run failed; 130 if the job was interrupted.

    Raises:
        TaskError: an error that the user can correct, in one line.
    """
    quiet_frameworks()
    given = vars(namespace)
    config = read_yaml(given["config"]) if "config" in given else {}
    for name in {"resume", "config"} & config.keys():
        raise TaskError(f"{name} is an option of the command line alone: take it out of {given['config']}")
    options, rest = _own_options(given, config)
    named = {**config, **given}
    allocation = {field: named[option] for option, field in ALLOCATION.items() if option in named}
    trainer = trainer_fields(extra_argv, rest) | allocation
    if "output" in config and not (isinstance(config["output"], str) and config["output"]):
        raise TaskError(f"output is {shown(config['output'])}: it must be the name of a folder")
    output = given.get("output") or (Path(config["output"]) if "output" in config else None)
    resume = given.get("resume", False)
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if resume:
        output = resumable_output(output)
        job = Job.load(output)
        check_same(job, options, trainer, output)
    else:
        job, notes = prepare(new_job(options, trainer))
        if alone:
            output = free_output(output)
            job.save(output)
            _say_all(notes)
    if not alone:
        return _in_torchrun(job, output, resume=resume)
    assert output is not None
    return _run_job(job, output, resume=resume)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        TaskError: no such file, or no mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise TaskError(f"cannot read the configuration {path}: {error.strerror}") from error
    except RecursionError:
        raise TaskError(f"{path} is not YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no text, or a date that does not exist
        raise TaskError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise TaskError(f"{path} must hold a mapping of options to values")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def trainer_fields(argv: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the given fields of the trainer's configuration with TRL's parser; flags take precedence over the file.

    Args:
        argv: flags that are not options of the job.
        config: keys of the YAML file that are not options of the job.

    Raises:
        TaskError: an unknown flag or key, a value of the wrong type, or a field that the job sets.
    """
    if not argv and not config:
        return {}  # without importing TRL, which takes seconds
    from transformers import HfArgumentParser

    from knapsack_rl.trl.config import KnapsackGRPOConfig

    known = {field.name for field in dataclasses.fields(KnapsackGRPOConfig) if field.init}
    for name in config.keys() - known:
        _refuse_unknown(name, known, "key of the configuration file")
    parser = HfArgumentParser(KnapsackGRPOConfig, allow_abbrev=False, exit_on_error=False)
    parser.error = _refuse
    # Fields that were not given must not look as if they were.
    absent = object()
    parser.set_defaults(**{name: _as_flag(parser, name, config[name]) if name in config else absent for name in known})
    try:
        parsed, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise TaskError(str(error)) from error
    if unknown:
        _refuse_unknown(unknown[0], known, "option" if unknown[0].startswith("-") else "argument")
    given = {name: value for name, value in vars(parsed).items() if value is not absent}
    if isinstance(given.get("report_to"), str) and "," in given["report_to"]:
        given["report_to"] = list(_names(given["report_to"]))
    for name in given.keys() & OWN.keys():
        raise TaskError(f"{name} is set by the job: use {OWN[name]}")
    return given


def _as_flag(parser: argparse.ArgumentParser, name: str, value: Any) -> Any:
    """A value of the file as the parser wants it: a number or truth value as text, which is checked as a flag's is.

    Raises:
        TaskError: a list or mapping in place of one value.
    """
    from transformers.hf_argparser import string_to_bool

    takes = next(action for action in parser._actions if action.dest == name)
    if value is None or takes.nargs == "+" or takes.type not in (int, float, string_to_bool):
        return value
    if isinstance(value, dict | list):
        raise TaskError(f"{name} is {shown(value)}: it must be one value")
    return str(value)


def _say_all(notes: Sequence[str]) -> None:
    if notes:
        from rich.console import Console

        from knapsack_rl.train.progress import say

        console = Console()
        for note in notes:
            say(console, note)


def _run_job(job: Job, output: Path, *, resume: bool) -> int:
    """Run the rules as subprocesses, then print the table and write the report."""
    from rich.console import Console

    from knapsack_rl.train.launch import prepare_model, run_rules
    from knapsack_rl.train.progress import print_summary, say

    console = Console()
    unfinished = [rule for rule in job.rules if not (resume and _finished(output / rule / TRACE_NAME))]
    if unfinished:
        prepare_model(job, console)
        say(console, f"{job.model} on {job.dataset}, rules: {', '.join(unfinished)}; results go to {output}/")
    ended = run_rules(job, output, unfinished, resume, console)
    runs = print_summary(console, output, job.rules)
    if runs:
        _write_report([run.trace.path for run in runs], output, console)
    if any(status not in (FINISHED, INTERRUPTED) for status in ended.values()):
        return RUN_FAILED
    if len(ended) < len(unfinished) or any(status != FINISHED for status in ended.values()):
        say(console, f"interrupted; resume with: knapsack-rl train --resume --output {output}")
        return INTERRUPTED_BY_USER
    return 0


def _in_torchrun(job: Job, output: Path | None, *, resume: bool) -> int:
    """Train with a single rule as one of the processes of ``torchrun``; TRL shows the progress."""
    from knapsack_rl.train.single_run import StopRequest, train

    if output is None:
        raise TaskError("under torchrun name the folder: --output FOLDER")
    rule = job.rules[-1]
    if len(job.rules) > 1:
        raise TaskError(f"torchrun trains with one rule at a time: --rules {rule}")
    if os.environ.get("RANK", "0") == "0" and not resume:
        job.save(free_output(output))
    stop = StopRequest()
    stop.listen()
    status = train(job, rule, output / rule, stop, resume)
    return 0 if status == FINISHED else INTERRUPTED_BY_USER


def _own_options(given: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the job from flags and file, flags first; and the keys of the file that are not the job's."""
    names = {field.name for field in dataclasses.fields(Job)} - {"trainer"}
    options = {name: value for name, value in {**config, **given}.items() if name in names}
    if isinstance(options.get("rules"), str | list):
        options["rules"] = _names(options["rules"])
    for name, value in options.items():
        _check_option(name, value)
    others = names | {"output", *ALLOCATION}
    return options, {name: value for name, value in config.items() if name not in others}


def _check_option(name: str, value: object) -> None:
    """Refuse a value of the wrong kind, which a file can hold, and numbers that no run can have.

    Raises:
        TaskError: names the option and the value.
    """
    if name in ("steps", "seed"):
        least, most = (1, 2**31 - 1) if name == "steps" else (0, 2**32 - 1)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise TaskError(f"{name} is {shown(value)}: it must be a whole number from {least} to {most:,}")
    elif name == "rules":
        if not isinstance(value, tuple):
            raise TaskError(f"rules is {shown(value)}: give names, separated by commas")
    elif not isinstance(value, str) or not value:
        raise TaskError(f"{name} is {shown(value)}: it must be text, and not empty")


def _names(text: str | Sequence[object]) -> tuple[str, ...]:
    parts = text.split(",") if isinstance(text, str) else map(str, text)
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def _finished(trace: Path) -> bool:
    return trace.is_file() and read_trace(trace).ended == "finished"


def _write_report(traces: Sequence[Path], output: Path, console: Console) -> None:
    from knapsack_rl.report import write_report
    from knapsack_rl.train.progress import say

    try:
        say(console, f"report: {write_report(traces, output / 'report.html')}")
    except ImportError as error:
        # Training succeeded; the report can be made later.
        say(console, f"no report: {error} (pip install 'knapsack-rl[report]', then knapsack-rl report {output})")


def _refuse_unknown(name: str, known: set[str], what: str) -> NoReturn:
    """Refuse a name of no option, with those that were perhaps meant, as they are written on the command line."""
    bare = name.lstrip("-").partition("=")[0].replace("-", "_")
    own = {field.name for field in dataclasses.fields(Job)} - {"trainer"} | {"output", "resume", "config", *ALLOCATION}
    close = difflib.get_close_matches(bare, sorted((known - OWN.keys()) | own), n=3)
    if what == "option":
        close = [f"--{option.replace('_', '-') if option in own else option}" for option in close]
    elif what == "argument":
        close = []
    hint = f"did you mean {' or '.join(close)}?" if close else "see the fields of GRPOConfig"
    raise TaskError(f"unknown {what} {name!r}; {hint} (`knapsack-rl train --help` lists the options)")


def _refuse(message: str) -> NoReturn:
    raise TaskError(message)
