"""What slime's flags name; written against slime 0.3.1, commit 624b824a898ab0ec1fcb4d373004c7f3852bf515.

slime is not on the package index. This is tested against its classes on a CPU, and has not been run end to end.
"""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from slime.rollout.data_source import RolloutDataSourceWithBuffer

from knapsack_rl.slime.source import PlansGroups, generate_planned, post_process

__all__ = ["DataSource", "generate", "post_process"]


class DataSource(PlansGroups, RolloutDataSourceWithBuffer):  # type: ignore[misc]  # slime is Any to the checker
    """slime's data source, with a planned number of rollouts for each prompt."""


async def generate(args: Namespace, sample: Any, sampling_params: dict[str, Any]) -> Any:
    """All planned rollouts of a sample, each by slime's own ``generate``."""
    from slime.rollout.sglang_rollout import generate as one  # here, because it needs SGLang

    return await generate_planned(one, args, sample, sampling_params)
