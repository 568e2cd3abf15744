"""TRL's own training arguments, from flags and from YAML, read by TRL's own parser."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from knapsack_rl.tasks.errors import TaskError

# Fields that the job sets itself, and what to say instead.
OWN: Final = {
    "output_dir": "--output",
    "seed": "--seed",
    "max_steps": "--steps",
    "allocation": "--arms",
    "resume_from_checkpoint": "--resume",
    "trace_file": "nothing: the trace is always OUTPUT/ARM/trace.jsonl",
}


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        TaskError: no such file, or not a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise TaskError(f"cannot read the configuration {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise TaskError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise TaskError(f"{path} must hold a mapping of options to values")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def trainer_fields(argv: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the trainer's configuration that were given, typed by TRL's parser; flags win over the file.

    Args:
        argv: flags that are not the job's own.
        config: keys of the YAML file that are not the job's own.

    Raises:
        TaskError: an unknown flag or key, a value of the wrong type, or a field that the job sets itself.
    """
    if not argv and not config:
        return {}  # spares the default job the seconds that importing TRL takes
    from transformers import HfArgumentParser

    from knapsack_rl.trl.config import KnapsackGRPOConfig

    parser = HfArgumentParser(KnapsackGRPOConfig, allow_abbrev=False, exit_on_error=False)
    parser.error = _refuse
    known = {action.dest for action in parser._actions}
    for action in parser._actions:
        # What was not given must not look as if it had been; the configuration class knows its own defaults.
        action.default = config.get(action.dest, argparse.SUPPRESS)
    _check_names(config, known, "key of the configuration file")
    try:
        parsed, unknown = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise TaskError(str(error)) from error
    if unknown:
        _unknown(unknown[0], known, "option" if unknown[0].startswith("-") else "argument")
    given = vars(parsed)
    for name in given.keys() & OWN.keys():
        raise TaskError(f"{name} is the job's own: use {OWN[name]}")
    return given


def check(fields: Mapping[str, Any]) -> None:
    """Build the configuration once, so that contradictions show before anything is started.

    Raises:
        TaskError: what TRL says against it, in one line.
    """
    from knapsack_rl.trl.config import KnapsackGRPOConfig

    try:
        KnapsackGRPOConfig(output_dir="unused", **fields)
    except (ValueError, TypeError) as error:
        raise TaskError(f"the training arguments do not fit: {' '.join(str(error).split())}") from error


def _check_names(given: Mapping[str, Any], known: set[str], what: str) -> None:
    for name in given:
        if name not in known:
            _unknown(name, known, what)


def _unknown(name: str, known: set[str], what: str) -> NoReturn:
    bare = name.lstrip("-").partition("=")[0].replace("-", "_")
    close = difflib.get_close_matches(bare, sorted(known | set(OWN)), n=3)
    hint = (
        f"; did you mean {' or '.join(close)}?" if close else "; options are those above and the fields of GRPOConfig"
    )
    raise TaskError(f"unknown {what} {name!r}{hint}")


def _refuse(message: str) -> NoReturn:
    raise TaskError(message)
