"""Kept successes as the cookbook needs them: as a trajectory of the group."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl.types import Trajectory

from knapsack_rl.kept import KeptSuccess, failed_rollouts
from knapsack_rl.outcomes import is_success
from knapsack_rl.tinker.outcome_log import Group, Success


@dataclass(frozen=True)
class Keeping:
    """Keeps a success of a group that has one, and replaces a rollout of one that has none.

    Only trajectories of one turn are kept: the tokens of a later turn's prompt depend on the turns before it.

    Attributes:
        threshold: least total reward that counts as a success.
        kept: an earlier success of the prompt, and the hash of what it answers; None if there is none.
    """

    threshold: float
    kept: tuple[str, KeptSuccess] | None

    def applied(self, group: Group, trajectories: list[Trajectory], answers: list[Any]) -> Group:
        """The group with what is to be logged of this; the replaced trajectory and its reward change in place.

        Args:
            group: with the rewards of its rollouts.
            trajectories: of these rollouts.
            answers: final reward and metrics of each.
        """
        succeeded = is_success(np.array(group.rewards, dtype=np.float64), self.threshold)
        for i in np.flatnonzero(succeeded)[::-1].tolist():
            success = _success(trajectories[i], group.rewards[i])
            if success is not None:
                return group._replace(success=success)
        failed = int(failed_rollouts(np.zeros(succeeded.size, dtype=np.int64), succeeded, 1)[0])
        if failed < 0 or self.kept is None or observation(trajectories[failed]) != self.kept[0]:
            return group
        earlier = self.kept[1]
        trajectories[failed] = self._replaced(trajectories[failed], earlier)
        answers[failed] = (0.0, answers[failed][1])
        return group._replace(age=group.step - earlier.step)

    def _replaced(self, trajectory: Trajectory, earlier: KeptSuccess) -> Trajectory:
        """The kept success as an answer to the same prompt; its metrics stay those of the rollout of this step."""
        answer = TokensWithLogprobs(tokens=earlier.tokens_T.tolist(), maybe_logprobs=earlier.log_probs_T.tolist())
        turn = dataclasses.replace(trajectory.transitions[0], ac=answer, reward=float(earlier.rewards_F.sum()))
        return dataclasses.replace(trajectory, transitions=[turn], stop_reason=None)


def observation(trajectory: Trajectory) -> str | None:
    """A hash of the prompt's tokens; None if there are several turns, or a prompt with images."""
    if len(trajectory.transitions) != 1:
        return None
    try:
        tokens = trajectory.transitions[0].ob.to_ints()
    except ValueError:
        return None
    return hashlib.sha256(np.array(tokens, dtype=np.int32).tobytes()).hexdigest()[:32]


def _success(trajectory: Trajectory, reward: float) -> Success | None:
    """What is kept of a trajectory; None if it cannot be."""
    found = observation(trajectory)
    if found is None:
        return None
    answer = trajectory.transitions[0].ac
    if not answer.tokens or answer.maybe_logprobs is None:
        return None
    return Success(
        found, reward, np.array(answer.tokens, dtype=np.int32), np.array(answer.maybe_logprobs, dtype=np.float32)
    )
