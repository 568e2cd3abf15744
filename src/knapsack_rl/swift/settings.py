"""Settings, by the environment variable ``KNAPSACK_RL``; and options of ms-swift that cannot work with them.

ms-swift refuses flags that it does not know, so they cannot be flags: ``KNAPSACK_RL="rule=beta,pool=4"``, or the name
of a TOML file with the same names.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knapsack_rl.config import CONSTANT_SIZE_FIELDS, AllocationConfig, from_dialect, own_settings
from knapsack_rl.trl.checks import check_pool, warn_of_smaller_pool

VARIABLE = "KNAPSACK_RL"
ALIASES = {"average": "--num_generations"}
# Settings of the adapter alone: what tells prompts apart (``hidden_states`` or None), and the record of the run.
OWN: dict[str, Any] = {"features": "hidden_states", "trace_file": "trace.jsonl"}
# The average is a flag of ms-swift's.
CORE = tuple(name for name in CONSTANT_SIZE_FIELDS if name != "average")

# Values of ms-swift's options that do not work, and why.
_REFUSED = (
    ("dynamic_sample", True, "it replaces planned groups by others"),
    ("async_generate", True, "it generates a batch before the outcomes of the one before it are there"),
    ("loss_type", "real", "its loss takes num_generations rows for a group"),
    ("scale_rewards", "gdpo", "it takes num_generations rows for a group"),
    ("truncation_strategy", "delete", "it replaces rows of a planned group by others"),
)


def read_settings() -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings in the environment: those that are set, and the adapter's own with their defaults.

    Raises:
        ValueError: a name that is no setting, text that is neither pairs nor a file, a damaged file, or a bad value.
    """
    text = os.environ.get(VARIABLE, "").strip()
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
    own = own_settings(given, CORE, OWN, f"{VARIABLE}: ")
    if own["features"] not in ("hidden_states", None):
        raise ValueError(f"{VARIABLE}: features is {own['features']!r}: choose hidden_states or none")
    return given, own


def allocation_of(args: Any, given: Mapping[str, Any], rows: int | None) -> AllocationConfig:
    """The allocation of a run, whose ``average`` is ``--num_generations``.

    Args:
        args: ms-swift's training arguments.
        given: the settings that are set.
        rows: of the data set; None for a stream, which never offers a prompt again that a pool has left out.

    Raises:
        ValueError: a bad value, by name, with what to set instead.
    """
    per_batch = args.generation_batch_size // args.num_generations
    settings = {**given, ALIASES["average"]: args.num_generations}
    wanted = from_dialect(ALIASES, settings)
    allocation = from_dialect(ALIASES, settings, most_pool=1 if rows is None else rows // per_batch)
    check_pool(allocation.pool, args.num_generations)
    if args.process_index == 0:
        warn_of_smaller_pool(wanted, allocation, rows, per_batch)
    return allocation


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
