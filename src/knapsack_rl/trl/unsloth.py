"""Unsloth beside TRL: keep the defaults of its config, and refuse what does not go with its trainer.

``import unsloth`` replaces TRL's trainer and config by classes that it generates from their source. The mixin works on
that trainer as on TRL's.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any, TypeVar

# What Unsloth sets on the config classes that it generates.
_GENERATED_CONFIG = "_unsloth_patched_rl_config"
# Options of Unsloth that weigh rollouts by group, and take every num_generations rows for one.
_RESHAPE_GROUPS = {"UNSLOTH_GRPO_ZERO_VARIANCE_EXCLUDE": "1", "UNSLOTH_GRPO_LOSS_AGGREGATION": "prompt"}

T = TypeVar("T")


def keep_unsloth_defaults(cls: type[T]) -> type[T]:
    """Let Unsloth's config, where it is the base of ``cls``, set its own fields; another base changes nothing.

    Its defaults (learning rate, optimizer, seed, ...) and its corrections of values are written in its ``__init__``,
    which that of a dataclass replaces by one with TRL's defaults.
    """
    base: Any = cls.__mro__[1]
    if not getattr(base, _GENERATED_CONFIG, False):
        return cls
    own = [each for each in dataclasses.fields(cls) if each.name in cls.__annotations__]  # type: ignore[arg-type]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        for each in own:  # first, because the base's __init__ ends in our __post_init__
            setattr(self, each.name, kwargs.pop(each.name, each.default))
        base.__init__(self, *args, **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


def check_unsloth(trainer: Any, model: Any) -> None:
    """Check that a model of Unsloth comes to Unsloth's trainer, and that no option of it needs equal groups.

    Args:
        trainer: a trainer whose base class is not yet initialised.
        model: the model that it is built for.

    Raises:
        ValueError: ``knapsack_rl.trl`` was imported first, so that the trainer is TRL's own; or such an option is set.
    """
    if "unsloth" not in sys.modules:
        return
    if not any(each.__name__.startswith("Unsloth") for each in type(trainer).__mro__):
        if hasattr(model, "for_training"):
            raise ValueError(
                "the model is Unsloth's and the trainer is TRL's own, because knapsack_rl.trl was imported before "
                "unsloth: put `import unsloth` above it"
            )
        return
    for name, value in _RESHAPE_GROUPS.items():
        if os.environ.get(name, "").strip().lower() == value:
            raise ValueError(
                f"{name}={value} weighs rollouts as if every group had num_generations of them, and here groups differ "
                "in size: unset it"
            )
