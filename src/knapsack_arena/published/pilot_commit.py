"""Pilot-Commit: a pilot of every prompt, and three times as many rollouts for those of middling difficulty.

Source: arXiv 2605.26606; code: databricks/pilot-commit, ``recipe/pc`` (``pc_ray_trainer.py``, ``replay_buffer.py``) and
``train_scripts/pc_qwen3-4b_p16c48.sh``, whose settings are the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from knapsack_arena.published.dapo import MOST_BATCHES
from knapsack_arena.published.pending import PendingGroups
from knapsack_arena.strategies import StepGenerator, StepSpec, take_unseen
from knapsack_arena.strategies.groups import no_groups, pick, to_train
from knapsack_rl.files import BeliefFileError, SavedToFile, State, check_kind
from knapsack_rl.outcomes import Outcomes

# Binary rewards make pass rates exact fractions, and the band includes its ends.
TOLERANCE = 1e-9
# Prompts examined for the pilots of a round, in units of those wanted.
PATIENCE = 10


@dataclass
class PilotCommit(SavedToFile):
    """``n_pilot`` rollouts of new prompts; where ``low <= pass rate <= high``, ``n_commit`` more a round later.

    Every round is one call to the engine: it commits to as many pending prompts as the batch still misses, chosen at
    random, and pilots ``oversampling`` batches of new ones. A group that is trained on has all its n_pilot + n_commit
    rollouts. A prompt whose pilot is all correct is excluded from then on; one outside the band is considered again
    when the sampler reaches it. At the end of a step, groups pending for more than ``max_age`` steps are dropped.

    Scale (our reading). The script's group is n = 64 for all data; so a batch is full with ``budget // 64`` groups (at
    least one), the rollouts of an equal division. A full step without surplus costs half as much again as the budget: 3
    pilots of 16 and a commitment of 48 for each group.

    Left out: the off-policy correction of pilots of an older policy (part of the loss). The authors empty the buffer at
    the end of an epoch and apply exclusions only then; a rule here does not know where an epoch ends.

    Degenerate cases. A prompt that is pending, or was generated in this step, is not piloted again (in the authors'
    code a new pilot replaces the old). At most 10 times the prompts wanted are examined for those not excluded; if that
    finds none and the step has nothing else to generate, the excluded are piloted again (our reading). At the limit of
    ``max_rounds`` the authors' code raises an error and the run ends; here the step trains on the groups it has, as it
    does when neither the sampler nor the queue has any left; without any complete group, on the last pilots with two
    answers, whose gradient then is that of small groups (our reading).

    Attributes:
        seed: of the choice among pending groups, together with the step.
        n_pilot, n_commit: rollouts of the pilot and of the commitment.
        low, high: the band of pass rates, ends included.
        max_age: steps after which a pilot is too old.
        oversampling: prompts piloted in a round, in units of the batch.
        max_rounds: most rounds of a step.

    Raises:
        ValueError: a pilot of fewer than 2, a band outside [0, 1] or empty, or other numbers below their least.
    """

    seed: int = 0
    n_pilot: int = 16
    n_commit: int = 48
    low: float = 0.125
    high: float = 0.75
    max_age: int = 4
    oversampling: int = 3
    max_rounds: int = MOST_BATCHES

    def __post_init__(self) -> None:
        for name, least in (("n_pilot", 2), ("n_commit", 1), ("max_age", 0), ("oversampling", 1), ("max_rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: use at least {least}")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"the band of pass rates is {self.low}..{self.high}: it must lie in [0, 1]")
        self.pending = PendingGroups()
        self.excluded: set[str] = set()

    def step(self, spec: StepSpec) -> StepGenerator:
        """Rounds of committing and piloting, until the batch is full."""
        rng = np.random.default_rng([self.seed, spec.step])
        groups = max(1, spec.budget // (self.n_pilot + self.n_commit))
        complete: list[Outcomes] = []
        missing, met, last = groups, set[str](), no_groups(spec.step)
        for _ in range(self.max_rounds):
            chosen = np.sort(rng.permutation(len(self.pending))[:missing])
            new = self._to_pilot(spec, self.oversampling * groups, met)
            met.update(new)
            if not chosen.size and not new:
                break
            outcomes = yield self.pending.request(chosen, self.n_commit, new, self.n_pilot)
            committed, last = self.pending.settle(chosen, outcomes)
            self._judge(last)
            complete.append(committed)
            missing -= chosen.size
            if not missing:
                break
        self.pending.remove(np.flatnonzero(spec.step - self.pending.begun_P > self.max_age))
        return to_train(spec.step, complete, groups, last)

    def _to_pilot(self, spec: StepSpec, wanted: int, met: set[str]) -> tuple[str, ...]:
        """The next prompts to pilot; excluded ones only if the step has nothing else to generate."""
        busy = met | set(self.pending.groups.prompt_ids)
        new = take_unseen(spec, wanted, busy | self.excluded, PATIENCE)
        return new if new or busy else take_unseen(spec, wanted)

    def _judge(self, pilots: Outcomes) -> None:
        """Queue pilots in the band, and exclude prompts that are solved; a pilot without answers does neither."""
        rates_P = pilots.pass_rates_P
        banded_P = (rates_P >= self.low - TOLERANCE) & (rates_P <= self.high + TOLERANCE) & (pilots.attempts_P >= 2)
        self.pending.add(pick(pilots, banded_P))
        self.excluded.update(pick(pilots, rates_P >= 1).prompt_ids)

    def state_dict(self) -> State:
        """The pending pilots and the exclusions."""
        return {"kind": "pilot-commit", "pending": self.pending.state_dict(), "excluded": sorted(self.excluded)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another rule, or damaged.
        """
        check_kind(state, kind="pilot-commit")
        excluded = state.get("excluded")
        if not isinstance(excluded, list) or not all(isinstance(each, str) for each in excluded):
            raise BeliefFileError("the saved list of excluded prompts is missing or no text: restore the file")
        self.pending, self.excluded = PendingGroups.from_state(state.get("pending") or {}), set(excluded)
