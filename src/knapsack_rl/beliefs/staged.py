"""Beliefs about verifiers in stages: a prompt that is hopeless at the end may be middling at an earlier stage.

A reward is the number of stages that a rollout has passed, in order (1: the format is right, 2: and the first step, 3:
and the answer). Each stage has beliefs of its own, and a group is forecast at the hardest stage whose rate is not near
0. The idea of subtasks is that of learning to compose them (arXiv 2401.14226), without its hierarchy of policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.files import State, check_kind
from knapsack_rl.notation import PromptFeatures
from knapsack_rl.outcomes import Outcomes

NEAR_ZERO: Final = 0.05


class StagedBeliefs:
    """Beliefs for rewards that count the stages that a rollout has passed.

    Attributes:
        stages: the beliefs of each stage, the easiest first.
        near_zero: a stage whose forecast rate is below this is left to later, if an easier one is not.
    """

    def __init__(self, stages: int, make: Callable[[], Beliefs], near_zero: float = NEAR_ZERO) -> None:
        """Beliefs of every stage that know nothing.

        Args:
            stages: number of stages; a reward of k or more means that stage k was passed.
            make: makes the beliefs of a stage.
            near_zero: least rate at which a stage is chosen.

        Raises:
            ValueError: no stage, or a rate outside [0, 1).
        """
        if stages < 1:
            raise ValueError(f"stages is {stages}: there must be at least one")
        if not 0 <= near_zero < 1:
            raise ValueError(f"near_zero is {near_zero}: it is a success rate, in [0, 1)")
        self.stages: list[Beliefs] = [make() for _ in range(stages)]
        self.near_zero = near_zero

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        """Forecast each prompt at its hardest stage with a rate that is not near 0, or else at the first."""
        found = [stage.forecast(prompt_ids, step, features) for stage in self.stages]
        chosen_P = np.zeros(len(prompt_ids), dtype=np.int64)
        for k, each in enumerate(found):
            chosen_P[each.success_rates_P >= self.near_zero] = k
        if len(found) == 1:
            return found[0]
        of_stage: dict[str, Any] = {}
        for field in fields(Forecast):
            values = [getattr(each, field.name) for each in found]
            missing = any(value is None for value in values)
            of_stage[field.name] = None if missing else np.stack(values)[chosen_P, np.arange(chosen_P.size)]
        return Forecast(**of_stage)

    def observe(self, outcomes: Outcomes) -> None:
        """Update every stage: a rollout has passed stage k if its reward is k or more."""
        if len(self.stages) == 1:
            self.stages[0].observe(outcomes)
            return
        for k, stage in enumerate(self.stages, 1):
            stage.observe(replace(outcomes, success_threshold=float(k)))

    def state_dict(self) -> State:
        """The state of every stage."""
        return {"kind": "staged", "stages": [stage.state_dict() for stage in self.stages]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes.

        Raises:
            BeliefFileError: state of other beliefs.
            ValueError: state of another number of stages.
        """
        check_kind(state, kind="staged")
        saved, before = list(state["stages"]), [stage.state_dict() for stage in self.stages]
        if len(saved) != len(before):
            raise ValueError(f"the saved beliefs have {len(saved)} stages, these have {len(before)}")
        try:
            for stage, each in zip(self.stages, saved, strict=True):
                stage.load_state_dict(each)
        except Exception:
            for stage, each in zip(self.stages, before, strict=True):
                stage.load_state_dict(each)
            raise
