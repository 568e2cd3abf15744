"""Settings (``knapsack:`` in the file of ``--custom-config-path``), and options of slime that cannot work with them."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from knapsack_rl.config import CONSTANT_SIZE_FIELDS, AllocationConfig, from_dialect, own_settings
from knapsack_rl.features.prompts import AUTO, resolved

ALIASES = {name: f"knapsack.{name}" for name in CONSTANT_SIZE_FIELDS}
# Settings of the adapter alone. ``scale``: what advantages are divided by, the deviation of the ``group``, of the
# ``batch``, or ``none``; by default as the estimator has it.
OWN: dict[str, Any] = {"features": AUTO, "scale": None, "trace_file": "trace.jsonl"}

# Estimators that compare the answers of a prompt, with what slime divides by.
SCALES = {"grpo": "group", "gspo": "group", "cispo": "group", "reinforce_plus_plus_baseline": "none"}

_REFUSED = {
    "dynamic_sampling_filter_path": "it replaces planned groups by others",
    "partial_rollout": "it puts half a group back into the data source",
    "fully_async": "it trains on parts of several plans",
    "group_rm": "it expects one answer in each slot of a group",
    "buffer_filter_path": "the buffer holds groups of earlier plans",
    "log_passrate": "it reshapes rewards into groups of one size",
    "custom_convert_samples_to_train_data_path": "the rewards may then not be passed on, and are not learned from",
}


def read_settings(args: Namespace) -> tuple[AllocationConfig, dict[str, Any]]:
    """The allocation that slime's arguments describe, and the adapter's own settings, all checked.

    Raises:
        ValueError: an unknown name, a bad value, or an option of slime that breaks groups; with what to change.
    """
    # slime waits for --rollout-batch-size prompts a step: none can be left out, so there is no pool.
    given: dict[str, Any] = dict(getattr(args, "knapsack", None) or {})
    if given.get("pool") is None:
        given["pool"] = 1
    own = own_settings(given, CONSTANT_SIZE_FIELDS, OWN, "knapsack.")
    _check_options(args)
    allocation = from_dialect(ALIASES, {ALIASES.get(name, name): value for name, value in given.items()})
    if allocation.pool != 1 or allocation.min_count == 0:
        raise ValueError(
            f"knapsack.pool is {allocation.pool} and knapsack.min_count {allocation.min_count}: slime waits for "
            "--rollout-batch-size prompts a step, so none can be left out; leave both away"
        )
    own["scale"] = given.get("scale") or SCALES[args.advantage_estimator]
    if own["scale"] not in ("group", "batch", "none"):
        raise ValueError(f"knapsack.scale is {own['scale']!r}: choose group, batch or none")
    own["features"] = resolved(own["features"]) if allocation.rule == "calibrated" else None
    return allocation, own


def _check_options(args: Namespace) -> None:
    given = vars(args)
    if args.n_samples_per_prompt != 1:
        raise ValueError(
            f"--n-samples-per-prompt is {args.n_samples_per_prompt}: set it to 1, and knapsack.average to the average "
            "number; a slot of slime then holds all rollouts of a prompt"
        )
    for name, reason in _REFUSED.items():
        if given.get(name):
            raise ValueError(f"--{name.replace('_', '-')} does not work with knapsack-rl ({reason}): leave it away")
    if not args.rollout_global_dataset or not given.get("prompt_data"):
        raise ValueError("there are no prompts to choose rollouts for: set --prompt-data, and keep the global data set")
    if given.get("over_sampling_batch_size") not in (None, args.rollout_batch_size):
        raise ValueError(
            f"--over-sampling-batch-size is {args.over_sampling_batch_size}: groups beyond --rollout-batch-size "
            f"({args.rollout_batch_size}) are dropped after they were planned; leave it away"
        )
    if args.advantage_estimator not in SCALES or given.get("rewards_normalization") is False:
        raise ValueError(
            f"--advantage-estimator {args.advantage_estimator} does not compare the answers of a prompt, or "
            f"--disable-rewards-normalization is set: choose from {', '.join(SCALES)}, without the latter"
        )
