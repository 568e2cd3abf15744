"""The update of the simulated policy: GRPO where a rollout either succeeds or fails.

With success rate p = sigmoid(z), ``d log pi / dz`` is 1 - p for a success and -p for a failure. The policy gradient
that a prompt's group adds to its logit is therefore (GRPO: arXiv 2402.03300, equation 3, without clipping and KL)

    g_i = sum_j w_ij A_ij (1[j succeeded] - p_i),        A_ij = (r_ij - b_i) / s_i

With the group's own mean and n rollouts of which k succeed, this is w n (k/n)(1 - k/n) / s_i: it does not depend on p,
is never negative, and is 0 for a group that is not mixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from knapsack_arena.strategies import Batch
from knapsack_rl.advantages import group_statistics
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes

# What trainers add to a group's standard deviation (verl; TRL takes 1e-4).
EPSILON = 1e-6


@dataclass(frozen=True)
class LearnerSettings:
    """How the simulated policy learns.

    Attributes:
        own_rate, shared_rate: learning rates of a prompt's own gain and of the shared skills.
        weighting: ``rollout``: every rollout weighs the same (a token-mean loss), so a prompt weighs by the size of its
            group; ``prompt``: every prompt of the batch weighs the same.
        scale_advantages: divide by the group's standard deviation (GRPO) or not (Dr. GRPO).
        optimizer: ``adam`` divides the step by the running size of the gradient; ``sgd`` does not.
        memory: decay of that running size per step.
        forgetting: steps after which half of a prompt's own gain is lost without training; infinite for never.
        noise: standard deviation of the random walk of a prompt's logit, per step.

    Raises:
        ValueError: a value out of range.
    """

    own_rate: float = 0.5
    shared_rate: float = 0.002
    weighting: Literal["rollout", "prompt"] = "rollout"
    scale_advantages: bool = True
    optimizer: Literal["adam", "sgd"] = "adam"
    memory: float = 0.99
    forgetting: float = 500.0
    noise: float = 0.03

    def __post_init__(self) -> None:
        for name in ("own_rate", "shared_rate", "noise"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}: it must be finite and not negative")
        if not self.forgetting > 0:
            raise ValueError(f"forgetting is {self.forgetting} steps: it must be positive (infinite for never)")
        if not 0 <= self.memory < 1:
            raise ValueError(f"memory is {self.memory}: it must be at least 0 and below 1")
        for name, choices in (("weighting", ("rollout", "prompt")), ("optimizer", ("adam", "sgd"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose from {', '.join(choices)}")


def advantages(batch: Batch, scaled: bool = True) -> FloatArray:
    """(r - b) / (s + 1e-6) of each rollout, 0 where there is no answer; ``[PG]``.

    b and s are the batch's where it gives them, else the group's mean and its sample standard deviation (n - 1), as in
    TRL and verl.
    """
    outcomes = batch.outcomes
    group_PG, answered_PG = outcomes.group_PG, outcomes.answered_PG
    groups = group_statistics(group_PG, outcomes.rewards_PG, len(outcomes.prompt_ids))
    baseline_P = groups.mean_P if batch.baseline_P is None else batch.baseline_P
    advantages_PG = np.where(answered_PG, outcomes.rewards_PG - baseline_P[group_PG], 0.0)
    if not scaled:
        return advantages_PG
    scale_P = groups.deviation_P if batch.scale_P is None else batch.scale_P
    scaled_PG: FloatArray = advantages_PG / (scale_P[group_PG] + EPSILON)
    return scaled_PG


def loss_weights(outcomes: Outcomes, weighting: Literal["rollout", "prompt"]) -> FloatArray:
    """Weight of each prompt's rollouts in the loss, ``[P]``: 1 / rollouts, or 1 / (prompts * group size)."""
    answers_P = outcomes.attempts_P
    if weighting == "rollout":
        return np.full(answers_P.size, 1.0 / max(int(answers_P.sum()), 1))
    weights_P: FloatArray = 1.0 / (np.maximum(answers_P, 1) * max(np.count_nonzero(answers_P), 1))
    return weights_P


def policy_gradient(batch: Batch, rates_P: FloatArray, settings: LearnerSettings) -> tuple[FloatArray, float]:
    """The gradient on each prompt's logit, and the squared size of the gradient in all other directions.

    Args:
        batch: what is trained on.
        rates_P: success rates now, ``[P]``.
        settings: how advantages are scaled and weighted.

    Returns:
        ``g_P`` (see the module), and ``sum_ij (w_ij A_ij)^2``: rollouts also differ in many ways that do not affect the
        reward, each with its own gradient; this is the squared length of those, up to a constant.
    """
    outcomes = batch.outcomes
    group_PG = outcomes.group_PG
    weighted_PG = advantages(batch, settings.scale_advantages) * loss_weights(outcomes, settings.weighting)[group_PG]
    towards_PG = outcomes.success_PG - rates_P[group_PG]
    gradient_P: FloatArray = np.bincount(group_PG, weighted_PG * towards_PG, outcomes.counts_P.size).astype(np.float64)
    return gradient_P, float(weighted_PG @ weighted_PG)
