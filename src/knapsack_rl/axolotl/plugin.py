"""What axolotl asks its plugins for: the fields of the YAML, those of the training arguments, and the trainer.

Axolotl merges the fields that plugins name into its own training arguments. So its arguments for GRPO become a
`KnapsackGRPOConfig`, and values of the YAML are checked where TRL's are. No trainer of axolotl's is imported here: they
are made after the plugins are known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

# What `trainer_cls` becomes where the YAML does not set it.
TRAINER = "knapsack_rl.axolotl.trainer.KnapsackGRPOTrainer"


class KnapsackFields(BaseModel):
    """The block ``knapsack:`` of the YAML: the fields that `KnapsackGRPOConfig` adds to TRL's."""

    knapsack: dict[str, Any] | None = None


class KnapsackPlugin(BasePlugin):  # type: ignore[misc]  # axolotl is not in the checker's environment
    """Trains with uneven groups: ``plugins: [knapsack_rl.axolotl.KnapsackPlugin]``."""

    def register(self, cfg: Any) -> None:
        """Name the trainer class, unless the YAML has one."""
        if not cfg.get("trainer_cls"):
            cfg["trainer_cls"] = TRAINER

    def get_input_args(self) -> str:
        """The class that describes our block of the YAML."""
        return f"{__name__}.{KnapsackFields.__name__}"

    def get_training_args_mixin(self) -> str:
        """The class whose fields the training arguments get."""
        return "knapsack_rl.trl.KnapsackGRPOConfig"

    def pre_model_load(self, cfg: Any) -> None:
        """Refuse what cannot train with uneven groups, before a model is loaded.

        Raises:
            ValueError: another method than GRPO, a trainer with groups of its own, or an unknown field.
        """
        check_trainer(cfg)
        check_fields(cfg.get("knapsack") or {})

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """The values of our fields."""
        return dict(cfg.get("knapsack") or {})


def check_trainer(cfg: Mapping[str, Any]) -> None:
    """Check that axolotl would choose the trainer that ours extends.

    Raises:
        ValueError: it would not; the message names the option and the remedy.
    """
    method = getattr(cfg.get("rl"), "value", cfg.get("rl"))  # a member of an enumeration, once it is checked
    if method not in ("grpo", "gdpo"):
        raise ValueError(f"rl is {method!r}: knapsack-rl plans the groups of 'grpo' and 'gdpo' only")
    options = cfg.get("trl") or {}
    for name in ("async_prefetch", "use_data_producer"):
        if options.get(name):
            raise ValueError(
                f"trl.{name} starts axolotl's asynchronous trainer, which scores rollouts in chunks of num_generations "
                f"rows, so groups cannot differ in size: leave {name} out"
            )
    if (cfg.get("context_parallel_size") or 1) > 1:
        raise ValueError(
            f"context_parallel_size is {cfg['context_parallel_size']}: axolotl's trainer for it computes advantages "
            "over num_generations rows at a time, so groups cannot differ in size: leave it out"
        )


def check_fields(given: Mapping[str, Any]) -> None:
    """Check the names in the block ``knapsack:``.

    Raises:
        ValueError: an unknown one; the message lists those there are.
    """
    from knapsack_rl.trl import KnapsackGRPOConfig
    from trl import GRPOConfig

    known = {each.name for each in dataclasses.fields(KnapsackGRPOConfig)}
    known -= {each.name for each in dataclasses.fields(GRPOConfig)}
    for name in sorted(set(given) - known):
        raise ValueError(f"knapsack has no field {name!r}: choose from {', '.join(sorted(known))}")
