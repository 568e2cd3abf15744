"""Beliefs that learn from their own forecasts how much to trust what they know.

What is known of a prompt: its own counts, fading; how its last group ended; and what the prompt *looks like*, if
someone gives features of it. None of that is a success rate by itself. A prompt whose last group was mixed has since
been trained on and is easier now; own counts say much where nothing transfers, and little where one skill serves a
thousand prompts. So a small logistic regression learns online, from forecasts and their outcomes, what each is worth:

    logit p = w . (1, look, look * e, own * e, last mixed, last unsolved, last solved)

where *own* is the log odds of the prompt's own counts, *e* = n / (n + 4) their weight of evidence, and *look* the log
odds by a second regression on the features, which learns from all prompts at once. Without features, *look* is the
running success rate of everybody. How sure to be, the strength of the Beta belief, is learned as well.

The best features known are the policy's own hidden states at the end of the prompt: the policy knows what it can do. A
poor forecaster silences itself, because its weight is learned from its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from knapsack_rl.beliefs import Forecast, PosteriorBeliefs
from knapsack_rl.logistic import LEAST_RATE, Concentration, OnlineLogistic, logistic, logit
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes

# Prompt ids to features, ``[P, features]``: any real numbers, on any scale.
Features: TypeAlias = Callable[[Sequence[str]], FloatArray]

KIND = "calibrated"
# Rollouts of own evidence that weigh as much as everything else together.
EVIDENCE_SCALE = 4.0
# A group counts as at most so many rollouts for what is learned about all prompts: one prompt is one prompt.
MOST_COUNTED, MOST_COUNTED_BY_LOOK = 8, 4
# Shares of what was learned that survive a step, and how strongly weights are held to where they begin.
DISCOUNT, LOOK_DISCOUNT = 0.97, 0.985
RIDGE, LOOK_RIDGE, INTERCEPT_RIDGE = 2.0, 10.0, 0.01
# Weights before any outcome: somewhat trusting of the look, and of own counts as they come.
FIRST_WEIGHTS = (0.0, 0.6, 0.0, 0.4, 0.0, 0.0, 0.0)
FURTHEST_LOOK = 6.0
# Wider features are projected at random: their inner products survive, and the regression stays quick.
MOST_FEATURES = 512
# How a prompt's last group ended, as bits.
SUCCESS, FAILURE = 1, 2


class CalibratedBeliefs(PosteriorBeliefs):
    """Own counts, last results and features, weighed by their record.

    Memory: as `PosteriorBeliefs` and a byte a prompt, and a square matrix of the features' number.
    """

    COLUMNS: Mapping[str, DTypeLike] = {**PosteriorBeliefs.COLUMNS, "last": np.uint8}

    def __init__(self, half_life: float = 64.0, features: Features | None = None) -> None:
        """Beliefs without evidence.

        Args:
            half_life: steps after which a prompt's own observations count half.
            features: what prompts look like, ``[P, features]``, at the time of asking; the number of features must not
                change. None: prompts are told apart by their record alone.

        Raises:
            ValueError: a half-life that is not positive and finite.
        """
        super().__init__(half_life, prior=(0.4, 0.4))
        self.features = features
        first = np.array(FIRST_WEIGHTS)
        self.weighing = OnlineLogistic(first, np.full(first.size, RIDGE), DISCOUNT)
        self.look: OnlineLogistic | None = None
        self.concentration = Concentration(DISCOUNT)
        self._last_look: tuple[dict[str, int], FloatArray] | None = None

    def forecast(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        """What to expect of these prompts at a step."""
        counts = super().forecast(prompt_ids, step)
        look_P_F = self._look_at(prompt_ids)
        self._last_look = ({prompt_id: row for row, prompt_id in enumerate(prompt_ids)}, look_P_F)
        signals_P_S, evidence_P = self._signals(prompt_ids, counts, look_P_F)
        strength_P = self.concentration.strength(evidence_P)
        return Forecast(self._weighed(signals_P_S), strength_P, counts.seen_P, counts.tokens_P, counts.idle_P)

    def observe(self, outcomes: Outcomes) -> None:
        """Learn what the forecast was worth, then count the outcomes."""
        answered = np.flatnonzero(outcomes.attempts_P)
        if not answered.size:
            return
        ids = [outcomes.prompt_ids[i] for i in answered]
        successes_P, attempts_P = outcomes.successes_P[answered], outcomes.attempts_P[answered]
        look_P_F = self._remembered_look(ids)
        signals_P_S, evidence_P = self._signals(ids, super().forecast(ids, outcomes.step), look_P_F)
        self.concentration.learn(evidence_P, self._weighed(signals_P_S), successes_P, attempts_P)
        if self.look is None:
            self.look = _new_look(look_P_F.shape[1])
        for learner, known, most in (
            (self.weighing, signals_P_S, MOST_COUNTED),
            (self.look, look_P_F, MOST_COUNTED_BY_LOOK),
        ):
            share_P = np.minimum(attempts_P, most) / attempts_P
            learner.learn(known, successes_P * share_P, attempts_P * share_P)
        steps_before_P = self._last_steps(ids)
        super().observe(outcomes)
        self._remember_results(ids, outcomes.step - steps_before_P, successes_P, attempts_P)

    def save(self, path: Path) -> None:
        """Write everything learned to a file, all or nothing."""
        learned = {f"weighing_{name}": array for name, array in self.weighing.state().items()}
        learned["concentration"] = self.concentration.record_L_G
        if self.look is not None:
            learned |= {f"look_{name}": array for name, array in self.look.state().items()}
        self.table.beside = learned
        self.table.save(path, {"kind": KIND, "half_life": self.half_life})

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; the half-life stays that of this object.

        Raises:
            BeliefFileError: the file is missing, damaged, of a later version, or of another kind.
        """
        self.table.load(path, {"kind": KIND})
        learned = self.table.beside
        self.weighing.restore({name: learned[f"weighing_{name}"] for name in ("weights", "precision")})
        self.concentration.record_L_G = learned["concentration"].copy()
        self.look, self._last_look = None, None
        if "look_weights" in learned:
            self.look = _new_look(learned["look_weights"].size)
            self.look.restore({name: learned[f"look_{name}"] for name in ("weights", "precision")})

    def _weighed(self, signals_P_S: FloatArray) -> FloatArray:
        """Success rates by everything that is known, ``[P]``."""
        rates_P: FloatArray = np.clip(logistic(self.weighing.logits(signals_P_S)), LEAST_RATE, 1 - LEAST_RATE)
        return rates_P

    def _signals(
        self, prompt_ids: Sequence[str], counts: Forecast, look_P_F: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """What is known of each prompt, ``[P, 7]``, and the weight of its own evidence, ``[P]``."""
        look_P = np.zeros(len(prompt_ids))
        if self.look is not None:
            look_P = np.clip(self.look.logits(look_P_F), -FURTHEST_LOOK, FURTHEST_LOOK)
        evidence_P = np.maximum(counts.strength_P - sum(self.prior), 0)
        share_P = evidence_P / (evidence_P + EVIDENCE_SCALE)
        rows = self.table.rows(prompt_ids)
        last_P = np.zeros(len(prompt_ids), dtype=np.uint8)
        last_P[rows >= 0] = self.table["last"][rows[rows >= 0]]
        results = [last_P == bits for bits in (SUCCESS | FAILURE, FAILURE, SUCCESS)]
        signals = [np.ones_like(look_P), look_P, look_P * share_P, logit(counts.success_rates_P) * share_P, *results]
        return np.stack(signals, axis=1).astype(np.float64), share_P

    def _look_at(self, prompt_ids: Sequence[str]) -> FloatArray:
        """Features of prompts with root mean square 1, and a constant; ``[P, F]``."""
        constant = np.ones((len(prompt_ids), 1))
        if self.features is None:
            return constant
        found = np.asarray(self.features(prompt_ids), dtype=np.float64)
        if found.ndim != 2 or len(found) != len(prompt_ids) or not np.isfinite(found).all():
            raise ValueError(
                f"features of {len(prompt_ids)} prompts came with shape {found.shape}, or not all finite: give one row "
                "of finite numbers for each prompt"
            )
        if found.shape[1] > MOST_FEATURES:
            found = found @ np.random.default_rng(found.shape[1]).standard_normal((found.shape[1], MOST_FEATURES))
        scale = np.sqrt((found**2).mean(axis=1, keepdims=True))
        return np.concatenate([found / np.maximum(scale, 1e-12), constant], axis=1)

    def _remembered_look(self, prompt_ids: Sequence[str]) -> FloatArray:
        """As they looked at the last forecast, since outcomes are usually learned before the policy has moved."""
        if self._last_look is not None:
            rows, look_P_F = self._last_look
            if all(prompt_id in rows for prompt_id in prompt_ids):
                return look_P_F[[rows[prompt_id] for prompt_id in prompt_ids]]
        return self._look_at(prompt_ids)

    def _last_steps(self, prompt_ids: Sequence[str]) -> IntArray:
        rows = self.table.rows(prompt_ids)
        steps = np.full(rows.size, -1, dtype=np.int64)
        steps[rows >= 0] = self.table["step"][rows[rows >= 0]]
        return steps

    def _remember_results(
        self, prompt_ids: Sequence[str], steps_since_P: IntArray, successes_P: IntArray, attempts_P: IntArray
    ) -> None:
        """How each prompt's latest group ended; the parts of one group add up, and an older group changes nothing."""
        rows = self.table.rows(prompt_ids)
        results = np.where(successes_P > 0, SUCCESS, 0) | np.where(successes_P < attempts_P, FAILURE, 0)
        last = self.table["last"]
        last[rows[steps_since_P > 0]] = 0
        current = steps_since_P >= 0
        np.bitwise_or.at(last, rows[current], results[current].astype(np.uint8))


def _new_look(features: int) -> OnlineLogistic:
    """A regression on so many features, the last of which is a constant."""
    ridge = np.full(features, LOOK_RIDGE)
    ridge[-1] = INTERCEPT_RIDGE
    return OnlineLogistic(np.zeros(features), ridge, LOOK_DISCOUNT)
