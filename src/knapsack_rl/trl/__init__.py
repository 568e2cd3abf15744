"""Drop-in GRPO trainer for TRL whose group sizes are allocated by an exact knapsack."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knapsack_rl.trl.config import KnapsackGRPOConfig
    from knapsack_rl.trl.trainer import KnapsackGRPOTrainer, KnapsackMixin

__all__ = ["KnapsackGRPOConfig", "KnapsackGRPOTrainer", "KnapsackMixin"]


def __getattr__(name: str) -> Any:
    """Import a class when it is asked for: other adapters use modules of this package beside trainers not TRL's own."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "config" if name == "KnapsackGRPOConfig" else "trainer"
    return getattr(importlib.import_module(f"knapsack_rl.trl.{module}"), name)
