"""Unsloth's generated trainer and config in TRL's place, without a GPU: import this before knapsack_rl.trl and small.

Without a GPU Unsloth leaves TRL as it is, so what ``import unsloth`` does with one is called here. Models of
`FastLanguageModel` need a GPU; the two methods of theirs that the trainer calls are added to the small model of the TRL
tests.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "UNSLOTH_ALLOW_CPU": "1",  # as in Unsloth's own tests
    "UNSLOTH_SKIP_TORCHVISION_CHECK": "1",
    "UNSLOTH_COMPILE_LOCATION": tempfile.mkdtemp(prefix="unsloth-"),
    "TORCHDYNAMO_DISABLE": "1",
}

from unsloth.models.rl import _patch_trl_rl_trainers
from unsloth.models.vision import FastBaseModel

_patch_trl_rl_trainers("grpo_trainer")

import small  # noqa: E402  # which takes both classes from TRL

_plain, _settings = small.model, small.settings


def model(seed: int = 0) -> Any:
    """The model of the TRL tests, with the methods of a model of Unsloth."""
    return of_unsloth(_plain(seed))


def of_unsloth(made: Any) -> Any:
    """The model, with what the trainer calls of a model of Unsloth."""
    made.for_training = functools.partial(FastBaseModel.for_training, made)
    made.for_inference = functools.partial(FastBaseModel.for_inference, made)
    return made


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """The settings of the TRL tests, with what Unsloth's defaults would change of the shape of a batch."""
    mine = {"gradient_accumulation_steps": 1, "optim": "adamw_torch", "warmup_steps": 0}
    return _settings(folder, **(mine | changes))


small.model, small.settings = model, settings
