"""Beliefs calibrated online: a logistic regression combines own counts, the outcome of the last group, and features.

Inputs: the prompt's own decayed counts, the outcome of its last group, and optional features. None of these is a
calibrated success rate: a prompt whose last group was mixed has since been trained on and has become easier; own counts
are informative where nothing transfers between prompts, and less so where many prompts need the same skill. So a
regression, fitted online to forecasts and their outcomes, combines them:

    logit p = w . (1, f, f * e, own * e, last mixed, last unsolved, last solved, confidence x (1, last ...))

where *own* is the log odds of the prompt's own counts, *e* = n / (n + 4) their weight of evidence for n decayed
rollouts, and *f* the log odds by a second regression, on the features of all prompts. Without features, *f* is the log
odds of the running success rate of all prompts. The coefficients of *confidence* are fitted separately per outcome of
the last group, because confidence means different things after a solved and an unsolved group. The pseudo-count of the
Beta belief is estimated by `Concentration`.

Measured best so far (docs/beliefs.md): hidden states of the policy at the end of the prompt as features, and as
confidence the log odds of its most probable next token (`knapsack_rl.beliefs.looks`). Uninformative inputs get
coefficients near zero. An input that is not known (NaN) counts as its running mean: features as that of all prompts, a
confidence as that of the prompts whose last group had the same outcome.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.looks import scaled
from knapsack_rl.beliefs.online_logistic import (
    MIN_RATE,
    Concentration,
    OnlineLogistic,
    RunningMeans,
    logistic,
    logit,
)
from knapsack_rl.files import BeliefFileError, State, check_kind, saved_array
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes

KIND = "calibrated"
# In state of version 1, two confidences are the entropy of the next token and the log odds of the most probable one.
VERSION = 2
# Own rollouts n at which the weight of evidence n / (n + scale) is 1/2.
EVIDENCE_SCALE = 4.0
# Most rollouts for which a group counts in the combiner and in the feature model: its rollouts are correlated.
MAX_COUNTED, MAX_COUNTED_BY_FEATURES = 8, 4
# Factor of the precision after each batch, and precision of the initial prior, of the combiner and the feature model.
DISCOUNT, FEATURES_DISCOUNT = 0.97, 0.985
RIDGE, FEATURES_RIDGE, INTERCEPT_RIDGE = 2.0, 10.0, 0.01
# Prior mean of the combiner's weights of (1, f, f * e, own * e, last mixed, last unsolved, last solved).
PRIOR_WEIGHTS = (0.0, 0.6, 0.0, 0.4, 0.0, 0.0, 0.0)
MAX_LOGIT = 6.0
# Confidence is of the order of 1; squares of this still leave the precision matrix solvable.
MAX_CONFIDENCE = 1e6
# Outcome of a prompt's last group, as bits: whether it had a success and whether it had a failure.
SUCCESS, FAILURE = 1, 2
RESULTS = (SUCCESS | FAILURE, FAILURE, SUCCESS)
# Inputs of the combiner: without confidence, and for each confidence.
SIGNALS, PER_CONFIDENCE = len(PRIOR_WEIGHTS), 1 + len(RESULTS)


class CalibratedBeliefs(BetaBeliefs):
    """Beta beliefs whose mean is a regression on own counts, last outcome and features (formula in the module).

    Memory: as `BetaBeliefs`, one byte more per prompt, and a square matrix of the number of features.
    """

    COLUMNS: Mapping[str, DTypeLike] = {**BetaBeliefs.COLUMNS, "last": np.uint8}

    def __init__(self, half_life: float = 64.0) -> None:
        """Start without observations.

        Args:
            half_life: steps after which a prompt's own observations count half.

        Raises:
            ValueError: a half-life that is not positive and finite.
        """
        super().__init__(half_life, prior=(0.4, 0.4))
        self.combiner: OnlineLogistic | None = None
        self.feature_model: OnlineLogistic | None = None
        self.concentration = Concentration(DISCOUNT)
        self.feature_means = RunningMeans(1, FEATURES_DISCOUNT)
        self.confidence_means = RunningMeans(PER_CONFIDENCE, DISCOUNT)
        self._entropy_is_first = False  # of two confidences, in state of version 1

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        """Forecast the success rates of these prompts at a step. Changes nothing.

        Args:
            prompt_ids: ids of the prompts, ``[P]``.
            step: generation step.
            features: current features of the prompts, NaN where unknown, or None. The number of features must not
                change during a run.

        Raises:
            ValueError: features that do not match the prompts, or a number of features that changed.
        """
        with self.table.lock:
            counts = self._by_counts(prompt_ids, step)
            inputs = self._filled(self._scaled(features, len(prompt_ids)), prompt_ids)
            signals_P_S, evidence_P = self._signals(prompt_ids, counts, inputs)
            pseudo_count_P = self.concentration.pseudo_count(evidence_P)
            rates_P = self._combined(signals_P_S)
        return Forecast(rates_P, pseudo_count_P, counts.seen_P, counts.tokens_P, counts.steps_since_observed_P)

    def observe(self, outcomes: Outcomes) -> None:
        """Fit the regressions with ``outcomes.features`` as input, then add the outcomes to the prompts' own counts."""
        answered = np.flatnonzero(outcomes.attempts_P)
        if not answered.size:
            return
        ids = [outcomes.prompt_ids[i] for i in answered]
        successes_P, attempts_P = outcomes.successes_P[answered], outcomes.attempts_P[answered]
        given = None if outcomes.features is None else outcomes.features.take(answered)
        with self.table.lock:
            look = self._scaled(given, len(ids))
            features = self._filled(look, ids)
            signals_P_S, evidence_P = self._signals(ids, self._by_counts(ids, outcomes.step), features)
            rates_P = self._combined(signals_P_S)
            # Copies, so that a failure changes nothing.
            combiner = copy.copy(self._combiner_for(signals_P_S.shape[1]))
            feature_model = copy.copy(self._feature_model_for(features.features_P_F.shape[1]))
            for learner, inputs, most in (
                (combiner, signals_P_S, MAX_COUNTED),
                (feature_model, features.features_P_F, MAX_COUNTED_BY_FEATURES),
            ):
                share_P = np.minimum(attempts_P, most) / attempts_P
                learner.learn(inputs, successes_P * share_P, attempts_P * share_P)
            self.concentration.learn(evidence_P, rates_P, successes_P, attempts_P)
            feature_means, confidence_means = copy.copy(self.feature_means), copy.copy(self.confidence_means)
            feature_means.learn(look.features_P_F, np.zeros(len(ids), dtype=np.int64))
            confidence_means.learn(look.confidence_P_C, self._last_results(ids))
            self.combiner, self.feature_model = combiner, feature_model
            self.feature_means, self.confidence_means = feature_means, confidence_means
            self._entropy_is_first &= _confidence_size(combiner) == 2
            steps_before_P = self._last_steps(ids)
            self._count(outcomes)
            self._remember_results(ids, outcomes.step - steps_before_P, successes_P, attempts_P)

    @property
    def header(self) -> Mapping[str, object]:
        """The kind of these beliefs. The half-life is not restored from saved state."""
        return {"kind": KIND}

    def state_dict(self, copy: bool = True) -> State:
        """Return everything learned, as arrays and plain values; without ``copy`` arrays are views of the table."""
        with self.table.lock:
            learners = {"combiner": self.combiner, "feature_model": self.feature_model}
            learned: State = {name: learner.state_dict() for name, learner in learners.items() if learner is not None}
            learned |= {name: means.state_dict() for name, means in self._means.items()}
            learned["version"] = 1 if self._entropy_is_first else VERSION
            return super().state_dict(copy) | {"concentration": self.concentration.record_L_G.copy()} | learned

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the half-life of this object is kept. On a failure nothing changes.

        Raises:
            BeliefFileError: state of another kind, or damaged.
        """
        check_kind(state, **self.header)
        record = saved_array(state, "concentration", np.float64, self.concentration.record_L_G.shape)
        combiner = _restored(_new_combiner, state.get("combiner"))
        feature_model = _restored(_new_feature_model, state.get("feature_model"))
        if combiner is not None and (combiner.weights_F.size - SIGNALS) % PER_CONFIDENCE:
            raise BeliefFileError(f"it holds a combiner of {combiner.weights_F.size} weights, which is not 7 + 4 * C")
        version = state.get("version", 1)
        if version not in (1, VERSION):
            raise BeliefFileError(f"it has version {version!r} and this release reads {VERSION}: update knapsack-rl")
        means = [_restored_means(each, state, name) for name, each in self._means.items()]
        with self.table.lock:
            super().load_state_dict(state)
            self.concentration.record_L_G = record
            self.combiner, self.feature_model = combiner, feature_model
            self.feature_means, self.confidence_means = means
            self._entropy_is_first = version == 1 and combiner is not None and _confidence_size(combiner) == 2

    @property
    def _means(self) -> dict[str, RunningMeans]:
        return {"feature_means": self.feature_means, "confidence_means": self.confidence_means}

    def _combined(self, signals_P_S: FloatArray) -> FloatArray:
        """Success rates by the combiner, ``[P]``, clipped to [MIN_RATE, 1 - MIN_RATE]."""
        combiner = self._combiner_for(signals_P_S.shape[1])
        rates_P: FloatArray = np.clip(logistic(combiner.logits(signals_P_S)), MIN_RATE, 1 - MIN_RATE)
        return rates_P

    def _combiner_for(self, signals: int) -> OnlineLogistic:
        combiner = self.combiner
        one, two = SIGNALS + PER_CONFIDENCE, SIGNALS + 2 * PER_CONFIDENCE
        if self._entropy_is_first and signals == one and combiner is not None and combiner.weights_F.size == two:
            combiner = combiner.without(range(SIGNALS, one))
        return _widened(combiner, _new_combiner, signals, range(SIGNALS))

    def _feature_model_for(self, features: int) -> OnlineLogistic:
        return _widened(self.feature_model, _new_feature_model, features, [features - 1])

    def _signals(
        self, prompt_ids: Sequence[str], counts: Forecast, features: PromptFeatures
    ) -> tuple[FloatArray, FloatArray]:
        """Inputs of the combiner, ``[P, 7 + 4 * C]``, and the weight of the prompts' own evidence, ``[P]``."""
        by_features_P = np.zeros(len(prompt_ids))
        if self.feature_model is not None:
            model = self._feature_model_for(features.features_P_F.shape[1])
            _check_same("features", features.features_P_F.shape[1] - 1, model.weights_F.size - 1)
            logits_P = model.logits(features.features_P_F)
            by_features_P = np.clip(logits_P, -MAX_LOGIT, MAX_LOGIT)
        confidences = features.confidence_P_C.shape[1]
        if learned := _confidence_size(self._combiner_for(SIGNALS + PER_CONFIDENCE * confidences)):
            _check_same("confidence values", confidences, learned)
        evidence_P = np.maximum(counts.pseudo_count_P - sum(self.prior), 0)
        share_P = evidence_P / (evidence_P + EVIDENCE_SCALE)
        last_P = self._last_results(prompt_ids)
        results = [last_P == bits for bits in RESULTS]
        signals = [
            np.ones_like(share_P),
            by_features_P,
            by_features_P * share_P,
            logit(counts.success_rates_P) * share_P,
            *results,
        ]
        for confidence_P in features.confidence_P_C.T:
            signals += [confidence_P, *(confidence_P * result_P for result_P in results)]
        return np.stack(signals, axis=1).astype(np.float64), share_P

    def _scaled(self, given: PromptFeatures | None, prompts: int) -> PromptFeatures:
        """Features scaled to a root mean square of 1 per prompt; confidence unchanged; NaN where unknown.

        If none are given, all are unknown, in the numbers seen before.
        """
        if given is None:
            size = 0 if self.feature_model is None else self.feature_model.weights_F.size - 1
            confidence_size = 0 if self.combiner is None else _confidence_size(self.combiner)
            return PromptFeatures(np.full((prompts, size), np.nan), np.full((prompts, confidence_size), np.nan))
        confidence_P_C = _checked("confidence", given.confidence_P_C, prompts)
        if (np.abs(confidence_P_C) > MAX_CONFIDENCE).any():
            raise ValueError(
                f"confidence is up to {np.nanmax(np.abs(confidence_P_C)):g}: scale it to the order of 1, or to at most "
                f"{MAX_CONFIDENCE:g}"
            )
        return PromptFeatures(scaled(_checked("features", given.features_P_F, prompts)), confidence_P_C)

    def _filled(self, features: PromptFeatures, prompt_ids: Sequence[str]) -> PromptFeatures:
        """The inputs of the regressions: unknown ones are the running means; a constant is the last feature."""
        everyone = np.zeros(len(prompt_ids), dtype=np.int64)
        found = self.feature_means.filled(features.features_P_F, everyone)
        confidence_P_C = self.confidence_means.filled(features.confidence_P_C, self._last_results(prompt_ids))
        return PromptFeatures(np.hstack([found, np.ones((len(prompt_ids), 1))]), confidence_P_C)

    def _last_results(self, prompt_ids: Sequence[str]) -> IntArray:
        """Outcome of each prompt's last group, as bits, ``[P]``; 0 for prompts that were never observed."""
        rows = self.table.rows(prompt_ids)
        last_P = np.zeros(rows.size, dtype=np.int64)
        last_P[rows >= 0] = self.table["last"][rows[rows >= 0]]
        return last_P

    def _last_steps(self, prompt_ids: Sequence[str]) -> IntArray:
        """Step in which each prompt was last observed, ``[P]``; -1 if it never was."""
        rows = self.table.rows(prompt_ids)
        steps = np.full(rows.size, -1, dtype=np.int64)
        steps[rows >= 0] = self.table["step"][rows[rows >= 0]]
        return steps

    def _remember_results(
        self, prompt_ids: Sequence[str], steps_since_P: IntArray, successes_P: IntArray, attempts_P: IntArray
    ) -> None:
        """Store the outcome of each prompt's latest group; parts of a group are combined, older groups are ignored."""
        rows = self.table.rows(prompt_ids)
        results = np.where(successes_P > 0, SUCCESS, 0) | np.where(successes_P < attempts_P, FAILURE, 0)
        last = self.table["last"]
        last[rows[steps_since_P > 0]] = 0
        current = steps_since_P >= 0
        np.bitwise_or.at(last, rows[current], results[current].astype(np.uint8))


def _new_combiner(signals: int) -> OnlineLogistic:
    """A regression on this number of signals; the weights of confidence, the last ones, have a prior mean of 0."""
    prior = np.zeros(signals)
    prior[: len(PRIOR_WEIGHTS)] = PRIOR_WEIGHTS
    return OnlineLogistic(prior, np.full(signals, RIDGE), DISCOUNT)


def _new_feature_model(features: int) -> OnlineLogistic:
    """A regression on this number of features, the last of which is the constant."""
    ridge = np.full(features, FEATURES_RIDGE)
    ridge[-1] = INTERCEPT_RIDGE
    return OnlineLogistic(np.zeros(features), ridge, FEATURES_DISCOUNT)


def _widened(
    model: OnlineLogistic | None, new: Callable[[int], OnlineLogistic], size: int, common: Sequence[int]
) -> OnlineLogistic:
    """The model for this number of inputs: ``model``, or a new one if it is None or was learned without features.

    Args:
        model: the model so far.
        new: makes one of a given size.
        size: inputs now.
        common: positions in the new model of the inputs that exist without features, whose weights are kept.
    """
    if model is not None and (model.weights_F.size != len(common) or size <= len(common)):
        return model
    wide = new(size)
    if model is not None:
        wide.weights_F[common] = model.weights_F
        wide.precision_F_F[np.ix_(common, common)] = model.precision_F_F
    return wide


def _restored(new: Callable[[int], OnlineLogistic], state: Mapping[str, Any] | None) -> OnlineLogistic | None:
    """Rebuild a saved regression; None if none was saved.

    Raises:
        BeliefFileError: arrays that are missing, or whose shapes do not match.
    """
    if state is None:
        return None
    weights_F = saved_array(state, "weights", np.float64, (None,))
    learner = new(weights_F.size)
    learner.weights_F = weights_F
    learner.precision_F_F = saved_array(state, "precision", np.float64, (weights_F.size, weights_F.size))
    try:
        np.linalg.cholesky(learner.precision_F_F)
    except np.linalg.LinAlgError:
        raise BeliefFileError(
            "the saved precision of a regression is not positive definite: restore the file"
        ) from None
    return learner


def _confidence_size(combiner: OnlineLogistic) -> int:
    """Number of confidence values per prompt for which a combiner has weights."""
    return (combiner.weights_F.size - SIGNALS) // PER_CONFIDENCE


def _restored_means(empty: RunningMeans, state: Mapping[str, Any], name: str) -> RunningMeans:
    """Rebuild saved means; none if none were saved, as in state of version 1.

    Raises:
        BeliefFileError: arrays that are missing, or whose shapes do not match.
    """
    found = RunningMeans(len(empty.sums_K_F), empty.discount)
    if (saved := state.get(name)) is not None:
        found.sums_K_F = saved_array(saved, "sums", np.float64, (len(empty.sums_K_F), None))
        found.weights_K_F = saved_array(saved, "weights", np.float64, found.sums_K_F.shape)
    return found


def _checked(what: str, given: FloatArray, prompts: int) -> FloatArray:
    """Convert to floats and check: one row of finite numbers, or NaN, for each prompt.

    Raises:
        ValueError: another shape, or infinity.
    """
    found = np.asarray(given, dtype=np.float64)
    if found.ndim != 2 or len(found) != prompts or np.isinf(found).any():
        raise ValueError(
            f"{what} of {prompts} prompts have shape {found.shape}, or are infinite: give one row of finite numbers "
            "for each prompt, NaN where they are not known"
        )
    return found


def _check_same(what: str, given: int, learned: int) -> None:
    """Raise ValueError unless the number of inputs is the number that the beliefs were fitted with."""
    if given != learned:
        raise ValueError(
            f"prompts have {given} {what} each, and beliefs have learned from {learned}: use the same features during "
            "the whole run, or start with new beliefs"
        )
