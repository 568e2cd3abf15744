"""What miles's flags name; written against commit 31f1ca961a94cb860cec3b2dea34ec332bfa8f76, and not run end to end."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from miles.rollout.data_source import RolloutDataSourceWithBuffer

from knapsack_rl.slime.source import PlansGroups, generate_planned, post_process

__all__ = ["DataSource", "generate", "post_process"]


class DataSource(PlansGroups, RolloutDataSourceWithBuffer):  # type: ignore[misc]  # miles is Any to the checker
    """miles's data source, with a planned number of rollouts for each prompt."""


async def generate(args: Namespace, sample: Any, sampling_params: dict[str, Any]) -> Any:
    """All planned rollouts of a sample, each by miles's own ``generate``."""
    from miles.rollout.sglang_rollout import generate as one  # here, because it needs SGLang

    return await generate_planned(one, args, sample, sampling_params)
