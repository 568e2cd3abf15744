"""Settings, by the environment variable ``KNAPSACK_RL``; and options of ms-swift that cannot work with them.

ms-swift refuses flags that it does not know, so they cannot be flags: ``KNAPSACK_RL="rule=beta,pool=4"``, or the name
of a TOML file with the same names.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from knapsack_rl.config import AllocationConfig, from_dialect

VARIABLE = "KNAPSACK_RL"
ALIASES = {"average": "--num_generations"}
# Settings of the adapter alone: what tells prompts apart (``hidden_states`` or None), and the record of the run.
OWN: dict[str, Any] = {"features": "hidden_states", "trace_file": "trace.jsonl"}
# The average is a flag of ms-swift's, and its batches have one size.
_ELSEWHERE = ("average", "budget", "step_cost", "least_budget", "token_decay", "token_every")
NAMES = (*(field.name for field in fields(AllocationConfig) if field.name not in _ELSEWHERE), *OWN)

# Values of ms-swift's options that do not work, and why.
_REFUSED = (
    ("dynamic_sample", True, "it replaces planned groups by others"),
    ("async_generate", True, "it generates a batch before the outcomes of the one before it are there"),
    ("loss_type", "real", "its loss takes num_generations rows for a group"),
    ("scale_rewards", "gdpo", "it takes num_generations rows for a group"),
    ("truncation_strategy", "delete", "it replaces rows of a planned group by others"),
)


def read_settings(text: str | None = None) -> dict[str, Any]:
    """The settings in the environment, by name; what is not set is not there.

    Args:
        text: the value of the variable; by default that of this process.

    Raises:
        ValueError: a name that is no setting, text that is neither pairs nor a file, or a damaged file.
    """
    text = (os.environ.get(VARIABLE, "") if text is None else text).strip()
    given: dict[str, Any] = {}
    if "=" in text:
        for pair in filter(None, map(str.strip, text.split(","))):
            name, _, value = map(str.strip, pair.partition("="))
            try:
                given[name] = json.loads(value)
            except json.JSONDecodeError:
                given[name] = value
    elif text:
        try:
            given = tomllib.loads(Path(text).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"{VARIABLE} is {text!r}: set name=value,... or a TOML file ({error})") from error
    for name in given:
        if name not in NAMES:
            raise ValueError(f"{VARIABLE} sets {name!r}, which is not a setting: there are {', '.join(NAMES)}")
    return given


def settings_of(args: Any, given: Mapping[str, Any], rows: int | None) -> tuple[AllocationConfig, dict[str, Any]]:
    """The allocation of a run, whose ``average`` is ``--num_generations``, and the adapter's own settings.

    Args:
        args: ms-swift's training arguments.
        given: as from `read_settings`.
        rows: of the data set; None for a stream.

    Raises:
        ValueError: a bad value, by name, with what to set instead.
    """
    own = {name: None if value in ("none", "") else value for name, value in (OWN | dict(given)).items() if name in OWN}
    if own["features"] not in ("hidden_states", None):
        raise ValueError(f"features is {own['features']!r}: choose hidden_states or none")
    core = {ALIASES["average"]: args.num_generations} | {name: given[name] for name in given if name not in OWN}
    allocation = from_dialect(ALIASES, core)
    # A pool that was not asked for is what the data can fill; a stream never offers a prompt again that was left out.
    most = 1 if rows is None else max(rows * args.num_generations // args.generation_batch_size, 1)
    if "pool" not in given and allocation.pool is not None and allocation.pool > most:
        allocation = from_dialect(ALIASES, core | {"pool": most})
    if allocation.pool is not None and allocation.pool > args.num_generations:
        raise ValueError(
            f"pool is {allocation.pool} and --num_generations {args.num_generations}: candidates share the rows of a "
            "group, so there can be at most num_generations"
        )
    if allocation.rule != "calibrated":
        own["features"] = None
    return allocation, own


def check_options(args: Any, template: Any) -> None:
    """Refuse options of ms-swift that reshape groups.

    Raises:
        ValueError: with what to change.
    """
    # The template knows --truncation_strategy delete as "raise".
    deletes = {"truncation_strategy": "delete"} if template.truncation_strategy == "raise" else {}
    for name, value, reason in _REFUSED:
        if (vars(args) | deletes).get(name) == value:
            shown = str(value).lower()
            raise ValueError(f"--{name} {shown} does not work with knapsack-rl ({reason}): use another value")
    if template.sequence_parallel_size > 1:
        raise ValueError("--sequence_parallel_size above 1 repeats groups in several processes: set it to 1")
