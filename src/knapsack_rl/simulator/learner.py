"""How the policy moves: GRPO's update where a rollout can do two things, succeed or fail.

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

from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.strategy import Batch

# What trainers add to a group's standard deviation (verl; TRL takes 1e-4).
EPSILON = 1e-6


@dataclass(frozen=True)
class LearnerSettings:
    """How the simulated policy learns.

    Attributes:
        own_rate, shared_rate: learning rates of what a prompt learns for itself and of the skills it shares.
        weighting: ``rollout``: every rollout weighs the same (a token-mean loss), so a prompt weighs as its group is
            large; ``prompt``: every prompt of the batch weighs the same.
        scale_advantages: divide by the group's standard deviation (GRPO) or not (Dr. GRPO).
        optimizer: ``adam`` divides the step by the running size of the gradient; ``sgd`` does not.
        memory: share of that running size kept from step to step.
        forgetting: steps after which half of a prompt's own gain is lost without practice; infinite for never.
        noise: standard deviation of the random walk of a prompt's logit, per step.

    Raises:
        ValueError: a value that makes no sense.
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
    rewards_PG = np.where(answered_PG, outcomes.rewards_PG, 0.0)
    answers_P = outcomes.attempts_P
    mean_P = np.bincount(group_PG, rewards_PG, answers_P.size) / np.maximum(answers_P, 1)
    baseline_P = mean_P if batch.baseline_P is None else batch.baseline_P
    advantages_PG = np.where(answered_PG, rewards_PG - baseline_P[group_PG], 0.0)
    if not scaled:
        return advantages_PG
    scale_P = batch.scale_P
    if scale_P is None:
        squares_PG = np.where(answered_PG, rewards_PG - mean_P[group_PG], 0.0) ** 2
        scale_P = np.sqrt(np.bincount(group_PG, squares_PG, answers_P.size) / np.maximum(answers_P - 1, 1))
    scaled_PG: FloatArray = advantages_PG / (scale_P[group_PG] + EPSILON)
    return scaled_PG


def loss_weights(outcomes: Outcomes, weighting: Literal["rollout", "prompt"]) -> FloatArray:
    """What each prompt's rollouts weigh in the loss, ``[P]``: one over all rollouts, or over prompts and group size."""
    answers_P = outcomes.attempts_P
    if weighting == "rollout":
        return np.full(answers_P.size, 1.0 / max(int(answers_P.sum()), 1))
    weights_P: FloatArray = 1.0 / (np.maximum(answers_P, 1) * max(np.count_nonzero(answers_P), 1))
    return weights_P


def policy_gradient(batch: Batch, rates_P: FloatArray, settings: LearnerSettings) -> tuple[FloatArray, float]:
    """The gradient on each prompt's logit, and the size of the gradient of everything else.

    Args:
        batch: what is trained on.
        rates_P: success rates now, ``[P]``.
        settings: how advantages are scaled and weighed.

    Returns:
        ``g_P`` (see the module), and ``sum_ij (w_ij A_ij)^2``: rollouts also differ in a thousand ways that decide
        nothing, each with a gradient of its own, and of those this is the squared length, up to a constant.
    """
    outcomes = batch.outcomes
    group_PG = outcomes.group_PG
    weighted_PG = advantages(batch, settings.scale_advantages) * loss_weights(outcomes, settings.weighting)[group_PG]
    towards_PG = outcomes.success_PG - rates_P[group_PG]
    gradient_P: FloatArray = np.bincount(group_PG, weighted_PG * towards_PG, outcomes.counts_P.size).astype(np.float64)
    return gradient_P, float(weighted_PG @ weighted_PG)
