"""Beliefs that learn from their own forecasts how much to trust what they know.

What is known of a prompt: its own counts, fading; how its last group ended; and what the prompt *looks like*, if
someone gives features of it. None of that is a success rate by itself. A prompt whose last group was mixed has since
been trained on and is easier now; own counts say much where nothing transfers, and little where one skill serves a
thousand prompts. So a small logistic regression learns online, from forecasts and their outcomes, what each is worth:

    logit p = w . (1, look, look * e, own * e, last mixed, last unsolved, last solved, confidence x (1, last ...))

where *own* is the log odds of the prompt's own counts, *e* = n / (n + 4) their weight of evidence, and *look* the log
odds by a second regression on the features, which learns from all prompts at once. Without features, *look* is the
running success rate of everybody. *Confidence* are a few numbers that mean the same for every prompt, if someone gives
them; what they mean depends on how the last group ended, because a policy that is sure of itself and was right lately
knows, and one that is sure and was wrong is mistaken. How sure to be, the strength of the Beta belief, is learned as
well.

The best features known are the policy's own hidden states at the end of the prompt, and the best confidence how sure it
is of its next token: the policy knows what it can do. A poor forecaster silences itself, because its weight is learned
from its record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from knapsack_rl.beliefs import Forecast, PosteriorBeliefs
from knapsack_rl.logistic import LEAST_RATE, Concentration, OnlineLogistic, logistic, logit
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes


class Look(NamedTuple):
    """What prompts look like.

    Attributes:
        features_P_F: any real numbers, on any scale: what they say of success is learned from all prompts at once.
        confidence_P_C: a few numbers of ordinary size that mean the same for every prompt, for instance how sure the
            policy is of its next token: what they say is learned apart for each way in which the last group ended.
    """

    features_P_F: FloatArray
    confidence_P_C: FloatArray


# Prompt ids to what they look like; an array alone is features without confidence.
Features: TypeAlias = Callable[[Sequence[str]], Look | FloatArray]

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
RESULTS = (SUCCESS | FAILURE, FAILURE, SUCCESS)


class CalibratedBeliefs(PosteriorBeliefs):
    """Own counts, last results and features, weighed by their record.

    Memory: as `PosteriorBeliefs` and a byte a prompt, and a square matrix of the features' number.
    """

    COLUMNS: Mapping[str, DTypeLike] = {**PosteriorBeliefs.COLUMNS, "last": np.uint8}

    def __init__(self, half_life: float = 64.0, features: Features | None = None) -> None:
        """Beliefs without evidence.

        Args:
            half_life: steps after which a prompt's own observations count half.
            features: what prompts look like at the time of asking; the number of features must not change. None:
                prompts are told apart by their record alone.

        Raises:
            ValueError: a half-life that is not positive and finite.
        """
        super().__init__(half_life, prior=(0.4, 0.4))
        self.features = features
        self.weighing: OnlineLogistic | None = None
        self.look: OnlineLogistic | None = None
        self.concentration = Concentration(DISCOUNT)
        self._last_look: tuple[dict[str, int], Look] | None = None

    def forecast(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        """What to expect of these prompts at a step."""
        counts = super().forecast(prompt_ids, step)
        look = self._look_at(prompt_ids)
        self._last_look = ({prompt_id: row for row, prompt_id in enumerate(prompt_ids)}, look)
        signals_P_S, evidence_P = self._signals(prompt_ids, counts, look)
        strength_P = self.concentration.strength(evidence_P)
        return Forecast(self._weighed(signals_P_S), strength_P, counts.seen_P, counts.tokens_P, counts.idle_P)

    def observe(self, outcomes: Outcomes) -> None:
        """Learn what the forecast was worth, then count the outcomes."""
        answered = np.flatnonzero(outcomes.attempts_P)
        if not answered.size:
            return
        ids = [outcomes.prompt_ids[i] for i in answered]
        successes_P, attempts_P = outcomes.successes_P[answered], outcomes.attempts_P[answered]
        look = self._remembered_look(ids)
        signals_P_S, evidence_P = self._signals(ids, super().forecast(ids, outcomes.step), look)
        self.concentration.learn(evidence_P, self._weighed(signals_P_S), successes_P, attempts_P)
        self.weighing = self.weighing or _new_weighing(signals_P_S.shape[1])
        self.look = self.look or _new_look(look.features_P_F.shape[1])
        for learner, known, most in (
            (self.weighing, signals_P_S, MOST_COUNTED),
            (self.look, look.features_P_F, MOST_COUNTED_BY_LOOK),
        ):
            share_P = np.minimum(attempts_P, most) / attempts_P
            learner.learn(known, successes_P * share_P, attempts_P * share_P)
        steps_before_P = self._last_steps(ids)
        super().observe(outcomes)
        self._remember_results(ids, outcomes.step - steps_before_P, successes_P, attempts_P)

    def save(self, path: Path) -> None:
        """Write everything learned to a file, all or nothing."""
        learned = {"concentration": self.concentration.record_L_G}
        for name, learner in (("weighing", self.weighing), ("look", self.look)):
            if learner is not None:
                learned |= {f"{name}_{part}": array for part, array in learner.state().items()}
        self.table.beside = learned
        self.table.save(path, {"kind": KIND, "half_life": self.half_life})

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; the half-life stays that of this object.

        Raises:
            BeliefFileError: the file is missing, damaged, of a later version, or of another kind.
        """
        self.table.load(path, {"kind": KIND})
        learned = self.table.beside
        self.concentration.record_L_G = learned["concentration"].copy()
        self.weighing, self.look = _restored(_new_weighing, learned, "weighing"), _restored(_new_look, learned, "look")
        self._last_look = None

    def _weighed(self, signals_P_S: FloatArray) -> FloatArray:
        """Success rates by everything that is known, ``[P]``."""
        weighing = self.weighing or _new_weighing(signals_P_S.shape[1])
        rates_P: FloatArray = np.clip(logistic(weighing.logits(signals_P_S)), LEAST_RATE, 1 - LEAST_RATE)
        return rates_P

    def _signals(self, prompt_ids: Sequence[str], counts: Forecast, look: Look) -> tuple[FloatArray, FloatArray]:
        """What is known of each prompt, ``[P, 7 + 4 * C]``, and the weight of its own evidence, ``[P]``."""
        look_P = np.zeros(len(prompt_ids))
        if self.look is not None:
            _check_same("features", look.features_P_F.shape[1] - 1, self.look.weights_F.size - 1)
            look_P = np.clip(self.look.logits(look.features_P_F), -FURTHEST_LOOK, FURTHEST_LOOK)
        if self.weighing is not None:
            learned = self.weighing.weights_F.size - len(FIRST_WEIGHTS)
            _check_same("numbers of confidence", look.confidence_P_C.shape[1], learned // (1 + len(RESULTS)))
        evidence_P = np.maximum(counts.strength_P - sum(self.prior), 0)
        share_P = evidence_P / (evidence_P + EVIDENCE_SCALE)
        rows = self.table.rows(prompt_ids)
        last_P = np.zeros(len(prompt_ids), dtype=np.uint8)
        last_P[rows >= 0] = self.table["last"][rows[rows >= 0]]
        results = [last_P == bits for bits in RESULTS]
        signals = [np.ones_like(look_P), look_P, look_P * share_P, logit(counts.success_rates_P) * share_P, *results]
        for confidence_P in look.confidence_P_C.T:
            signals += [confidence_P, *(confidence_P * ended_so for ended_so in results)]
        return np.stack(signals, axis=1).astype(np.float64), share_P

    def _look_at(self, prompt_ids: Sequence[str]) -> Look:
        """Features of prompts with root mean square 1, with a constant behind them; confidence as it is."""
        constant, nothing = np.ones((len(prompt_ids), 1)), np.zeros((len(prompt_ids), 0))
        if self.features is None:
            return Look(constant, nothing)
        given = self.features(prompt_ids)
        look = given if isinstance(given, Look) else Look(given, nothing)
        found = _checked("features", look.features_P_F, prompt_ids)
        if found.shape[1] > MOST_FEATURES:
            found = found @ np.random.default_rng(found.shape[1]).standard_normal((found.shape[1], MOST_FEATURES))
        scale = np.sqrt((found**2).mean(axis=1, keepdims=True))
        found = np.concatenate([found / np.maximum(scale, 1e-12), constant], axis=1)
        return Look(found, _checked("confidence", look.confidence_P_C, prompt_ids))

    def _remembered_look(self, prompt_ids: Sequence[str]) -> Look:
        """As they looked at the last forecast, since outcomes are usually learned before the policy has moved."""
        if self._last_look is not None:
            row_of, look = self._last_look
            if all(prompt_id in row_of for prompt_id in prompt_ids):
                rows = [row_of[prompt_id] for prompt_id in prompt_ids]
                return Look(look.features_P_F[rows], look.confidence_P_C[rows])
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


def _new_weighing(signals: int) -> OnlineLogistic:
    """A regression on so many signals; those of confidence come last, and mean nothing yet."""
    first = np.zeros(signals)
    first[: len(FIRST_WEIGHTS)] = FIRST_WEIGHTS
    return OnlineLogistic(first, np.full(signals, RIDGE), DISCOUNT)


def _new_look(features: int) -> OnlineLogistic:
    """A regression on so many features, the last of which is a constant."""
    ridge = np.full(features, LOOK_RIDGE)
    ridge[-1] = INTERCEPT_RIDGE
    return OnlineLogistic(np.zeros(features), ridge, LOOK_DISCOUNT)


def _restored(
    new: Callable[[int], OnlineLogistic], learned: Mapping[str, NDArray[np.float64]], name: str
) -> OnlineLogistic | None:
    """What was saved under this name, if anything had been learned."""
    if f"{name}_weights" not in learned:
        return None
    learner = new(learned[f"{name}_weights"].size)
    learner.restore({part: learned[f"{name}_{part}"] for part in ("weights", "precision")})
    return learner


def _checked(what: str, given: FloatArray, prompt_ids: Sequence[str]) -> FloatArray:
    """One row of finite numbers for each prompt, or an error that says what came instead."""
    found = np.asarray(given, dtype=np.float64)
    if found.ndim != 2 or len(found) != len(prompt_ids) or not np.isfinite(found).all():
        raise ValueError(
            f"{what} of {len(prompt_ids)} prompts came with shape {found.shape}, or not all finite: give one row of "
            "finite numbers for each prompt"
        )
    return found


def _check_same(what: str, given: int, learned: int) -> None:
    if given != learned:
        raise ValueError(
            f"prompts came with {given} {what} each, and beliefs have learned from {learned}: keep to the features"
            " that a run began with, or begin with new beliefs"
        )
