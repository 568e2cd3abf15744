"""The interface of beliefs: forecasts of success rates with a pseudo-count per prompt, updated by outcomes.

Any forecaster of success rates with these methods can be used, such as a probe of the policy or an external model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from knapsack_rl.files import State
from knapsack_rl.notation import BoolArray, FloatArray, IntArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes


@dataclass(frozen=True, eq=False)
class Forecast:
    """Beta beliefs about the success rates of some prompts before a step.

    Attributes:
        success_rates_P: expected success rates, ``[P]``, in [0, 1].
        pseudo_count_P: evidence in rollouts; the belief is Beta(rate * pseudo_count, (1-rate) * pseudo_count), ``[P]``.
        seen_P: whether the prompt has been observed (`WindowBeliefs`: often enough for an estimate), ``[P]``.
        tokens_P: expected completion length in tokens, NaN where unknown, ``[P]``.
        steps_since_observed_P: steps since the prompt was last observed, or since step 0 if it never was, ``[P]``. None
            if the beliefs do not count them; no prompt is then overdue.
        kept_P: whether an earlier success of the prompt is kept (`knapsack_rl.kept`), ``[P]``; None if none are.
    """

    success_rates_P: FloatArray
    pseudo_count_P: FloatArray
    seen_P: BoolArray
    tokens_P: FloatArray
    steps_since_observed_P: IntArray | None = None
    kept_P: BoolArray | None = None

    @property
    def alpha_P(self) -> FloatArray:
        """First parameter of the Beta beliefs, ``[P]``."""
        return self.success_rates_P * self.pseudo_count_P

    @property
    def beta_P(self) -> FloatArray:
        """Second parameter of the Beta beliefs, ``[P]``."""
        return self.pseudo_count_P - self.alpha_P


class Beliefs(Protocol):
    """A forecaster of success rates that learns from outcomes."""

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        """Forecast the success rates of these prompts at a step, given their features or None. Changes nothing."""
        ...

    def observe(self, outcomes: Outcomes) -> None:
        """Update the beliefs with outcomes of this step or an earlier one, of complete groups or parts of them."""
        ...

    def state_dict(self) -> State:
        """Return everything learned, as arrays and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes."""
        ...
