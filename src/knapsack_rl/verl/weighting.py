"""Advantages under which every prompt has the same weight in the loss, independent of the size of its group.

verl's losses weigh every rollout (or token) alike, so a group of N_i weighs as N_i. A factor of mean(N) / N_i is added
in verl's registry of advantage estimators: ``grpo`` becomes ``grpo_per_prompt``, and so on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, get_adv_estimator_fn, register_adv_est

from knapsack_rl.advantages import prompt_weights
from knapsack_rl.verl.settings import PROMPT_WEIGHTED

Estimator = Callable[..., tuple[torch.Tensor, torch.Tensor]]

# Prefix of the uids of the rows that verl pads a short batch with.
_PADDING = "pad"


def per_prompt(name: str) -> str:
    """Name of the variant of an estimator in which every prompt weighs the same; registers it on first use."""
    renamed = f"{name}_per_prompt"
    if renamed not in ADV_ESTIMATOR_REGISTRY:
        register_adv_est(renamed)(_weighted(name, get_adv_estimator_fn(name)))
    return renamed


def weights_of_rows(uids: Sequence[str]) -> torch.Tensor:
    """`prompt_weights` for each row, ``[rows]``; 0 for rows of padding."""
    sizes = Counter(uid for uid in uids if not str(uid).startswith(_PADDING))
    weights = dict(zip(sizes, prompt_weights(np.array([*sizes.values()], dtype=np.int64)).tolist(), strict=True))
    return torch.tensor([weights.get(uid, 0.0) for uid in uids])


def _weighted(name: str, estimator: Estimator) -> Estimator:
    assert name in PROMPT_WEIGHTED, name

    def weighted(*, index: Any, config: Any = None, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if name == "grpo":  # verl passes the whole config to the others, and its one setting to this one
            kwargs["norm_adv_by_std_in_grpo"] = config.get("norm_adv_by_std_in_grpo", True) if config else True
        advantages, returns = estimator(index=index, config=config, **kwargs)
        return advantages * weights_of_rows(list(index)).to(advantages).unsqueeze(-1), returns

    return weighted
