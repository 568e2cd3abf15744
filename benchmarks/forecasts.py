"""Errors of beliefs on a small language model whose success rates are known, exactly or (long answers) by sampling.

One run of the laboratory, planned by `beta` over a pool. All beliefs forecast the same candidates before each step and
observe the same outcomes, so that their differences are due to the beliefs alone.

    python -m benchmarks.forecasts [--regimes skills,keys,tail] [--seeds 1] [--first-seed 0] [--steps N] [--divisor N]
        [--ablation]

Columns: mean squared error of the expected against the true success rate, and its ratio to that of the paper's
estimator; the log density of the true rate under the Beta belief (higher is better); and the value at true rates of a
plan made with the belief, as a share of that of a plan made with true rates, for the same candidates: over the pool,
where prompts may be left out, and over its first quarter, with at least two rollouts each.

Each figure is a mean over seeds with a 95 % interval. ``--ablation`` removes each ingredient of the calibrated
belief in turn. ``--divisor 4`` takes steps of a quarter of the regime's groups, four times as many. Sampled rates are
those of 16 rollouts in every fifth step; their variance is in the squared error of all beliefs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from knapsack_arena.compare.ranking import estimate
from knapsack_arena.lab.environment import LanguageModelEnvironment
from knapsack_arena.lab.regimes import Regime
from knapsack_arena.lab.trials import find_regime
from knapsack_arena.strategies import OneRound, StepSpec, run_step
from knapsack_arena.strategies.protocol import FeatureSource
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.beta import BetaBeliefs
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.beliefs.looks import scaled
from knapsack_rl.beliefs.online_logistic import Concentration, normalised_maximum_likelihood
from knapsack_rl.beliefs.window import WindowBeliefs
from knapsack_rl.features.text import TextFeatures
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import FloatArray, PromptFeatures
from knapsack_rl.rules import expected_value
from knapsack_rl.values import expected_knapsack_marginals, knapsack_marginals, knapsack_value

POOL, MOST = 4, 64
HALF_LIVES = {"skills": 40.0, "keys": 40.0, "tail": 530.0, "long": 64.0, "hopeless": 64.0}
SAMPLES = 16
# The first steps are left out: no belief has evidence yet.
SKIPPED, PLANNED_EVERY = 15, 5
# Places of the signals in `CalibratedBeliefs`.
WEIGHED_FEATURES, OWN_COUNTS = (2,), (3,)
# How the last group ended, alone and times confidence; and all of confidence.
LAST_RESULTS, CONFIDENCE = (4, 5, 6, 8, 9, 10), (7, 8, 9, 10)
CONFIDENCE_BY_RESULT = (8, 9, 10)
# Share of evidence n / (n + 4) below which it is little: fewer than 4 rollouts, decayed.
LITTLE = 0.5


@dataclass
class Candidate:
    """Beliefs under comparison, and the features that they learn from."""

    beliefs: Beliefs
    features: FeatureSource | None = None


def all_beliefs(environment: LanguageModelEnvironment, half_life: float) -> Mapping[str, Candidate]:
    """The beliefs that are compared."""
    return {
        "paper": Candidate(WindowBeliefs()),
        "beta": Candidate(BetaBeliefs(half_life)),
        "calibrated": Candidate(CalibratedBeliefs(half_life)),
        "calibrated, text": Candidate(CalibratedBeliefs(half_life), TextFeatures()),  # a prompt is its own id
        "calibrated, confidence": Candidate(CalibratedBeliefs(half_life), confidence_only(environment)),
        "calibrated, hidden states and confidence": Candidate(CalibratedBeliefs(half_life), environment.hidden_states),
        "the same, normalised maximum likelihood": Candidate(Cautious(half_life), environment.hidden_states),
        "calibrated, text and confidence": Candidate(
            CalibratedBeliefs(half_life), with_text(environment, hidden=False)
        ),
        "calibrated, hidden states, text and confidence": Candidate(
            CalibratedBeliefs(half_life), with_text(environment)
        ),
        "calibrated, name of the skill and confidence": Candidate(
            CalibratedBeliefs(half_life), skill_and_confidence(environment)
        ),
    }


def ablations(environment: LanguageModelEnvironment, half_life: float) -> Mapping[str, Candidate]:
    """The calibrated belief with hidden states, without one ingredient each."""
    fixed = CalibratedBeliefs(half_life)
    fixed.concentration = FixedPseudoCount()

    def without(signals: Sequence[int]) -> Candidate:
        return Candidate(Without(signals, half_life), environment.hidden_states)

    return {
        "paper": Candidate(WindowBeliefs()),
        "all of it": Candidate(CalibratedBeliefs(half_life), environment.hidden_states),
        "- hidden states": Candidate(CalibratedBeliefs(half_life), confidence_only(environment)),
        "- confidence": without(CONFIDENCE),
        "- both": Candidate(CalibratedBeliefs(half_life)),
        "- confidence's dependence on the last group": without(CONFIDENCE_BY_RESULT),
        "- own counts": without(OWN_COUNTS),
        "- how the last group ended": without(LAST_RESULTS),
        "- weight of evidence": without(WEIGHED_FEATURES),
        "- learned pseudo-count (4 always)": Candidate(fixed, environment.hidden_states),
    }


class Cautious(CalibratedBeliefs):
    """Calibrated beliefs whose rates are by normalised maximum likelihood (MURAL) where there is little evidence.

    The leverage is the variance of the log odds under both regressions: that on features enters the other by its slope.
    """

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        """Forecast; other rates for prompts with less than `LITTLE` evidence."""
        plain = super().forecast(prompt_ids, step, features)
        inputs = self._filled(self._scaled(features, len(prompt_ids)), prompt_ids)
        signals_P_S, evidence_P = self._signals(prompt_ids, self._by_counts(prompt_ids, step), inputs)
        combiner = self._combiner_for(signals_P_S.shape[1])
        by_features = self._feature_model_for(inputs.features_P_F.shape[1])
        slope_P = combiner.weights_F[1] + combiner.weights_F[2] * evidence_P
        leverage_P = combiner.leverage(signals_P_S) + slope_P**2 * by_features.leverage(inputs.features_P_F)
        cautious_P = normalised_maximum_likelihood(combiner.logits(signals_P_S), leverage_P)
        return replace(plain, success_rates_P=np.where(evidence_P < LITTLE, cautious_P, plain.success_rates_P))


class Without(CalibratedBeliefs):
    """Calibrated beliefs with some of their signals set to 0."""

    def __init__(self, signals: Sequence[int], half_life: float) -> None:
        super().__init__(half_life)
        self.removed = list(signals)

    def _signals(
        self, prompt_ids: Sequence[str], counts: Forecast, features: PromptFeatures
    ) -> tuple[FloatArray, FloatArray]:
        signals_P_S, evidence_P = super()._signals(prompt_ids, counts, features)
        signals_P_S[:, self.removed] = 0
        return signals_P_S, evidence_P


def confidence_only(environment: LanguageModelEnvironment) -> FeatureSource:
    """The policy's confidence in its next token, without the hidden states."""

    def features(prompt_ids: Sequence[str]) -> PromptFeatures:
        return PromptFeatures(np.ones((len(prompt_ids), 1)), environment.hidden_states(prompt_ids).confidence_P_C)

    return features


def with_text(environment: LanguageModelEnvironment, hidden: bool = True) -> FeatureSource:
    """Features of the text, the policy's confidence, and perhaps hidden states, in parts of equal weight."""
    text = TextFeatures()

    def features(prompt_ids: Sequence[str]) -> PromptFeatures:
        found = environment.hidden_states(prompt_ids)
        parts = [scaled(text(prompt_ids).features_P_F), *([scaled(found.features_P_F)] if hidden else [])]
        return PromptFeatures(np.hstack(parts), found.confidence_P_C)

    return features


def skill_and_confidence(environment: LanguageModelEnvironment) -> FeatureSource:
    """Which skill a prompt needs, as one number of 0 or 1 each, and the policy's confidence."""
    skill_of = {item.prompt: item.source for item in environment.regime.train}
    place = {skill: i for i, skill in enumerate(sorted(set(skill_of.values())))}

    def features(prompt_ids: Sequence[str]) -> PromptFeatures:
        which = [place[skill_of[prompt_id]] for prompt_id in prompt_ids]
        return PromptFeatures(np.eye(len(place))[which], environment.hidden_states(prompt_ids).confidence_P_C)

    return features


class FixedPseudoCount(Concentration):
    """A pseudo-count of four rollouts for every belief."""

    def __init__(self) -> None:
        super().__init__(discount=1.0)

    def learn(self, *outcomes: object) -> None:
        """Learn nothing: the record stays empty."""


def measure(
    regime: Regime,
    seed: int,
    steps: int,
    compared: Callable[[LanguageModelEnvironment, float], Mapping[str, Candidate]] = all_beliefs,
    divisor: int = 1,
) -> dict[str, FloatArray]:
    """Mean over the steps of each belief's four measures."""
    sampled = regime.verify is not None
    groups, steps = regime.groups // divisor, steps * divisor
    environment = LanguageModelEnvironment(replace(regime, samples=SAMPLES) if sampled else regime, seed)
    half_life = HALF_LIVES[regime.name.partition("/")[0]] * divisor
    planner = OneRound(KnapsackAllocator(BetaBeliefs(half_life), expected_value, 0, MOST), POOL)
    beliefs = compared(environment, half_life)
    budget = groups * regime.average
    found: dict[str, list[list[float]]] = {name: [] for name in beliefs}
    for step in range(steps):
        offered: list[str] = []
        spec = StepSpec(step, groups, budget, _recording(environment.take, offered))
        batch = run_step(planner, spec, environment.generate).batch
        measured = step >= SKIPPED * divisor and (step % PLANNED_EVERY == 0 or not sampled)
        true_P = environment.success_rates(offered) if measured else np.zeros(0)
        for name, each in beliefs.items():
            given = None if each.features is None else each.features(offered)
            forecast = each.beliefs.forecast(offered, step, given)
            if measured:
                error = float(np.mean((forecast.success_rates_P - true_P) ** 2))
                shares = [math.nan, math.nan]
                if step % PLANNED_EVERY == 0:
                    shares = [
                        value_share(forecast, true_P, budget, least=0),
                        value_share(first(forecast, groups), true_P[:groups], budget, least=2),
                    ]
                found[name].append([error, log_score(forecast, true_P), *shares])
            rows = np.array([offered.index(prompt_id) for prompt_id in batch.outcomes.prompt_ids])
            each.beliefs.observe(replace(batch.outcomes, features=None if given is None else given.take(rows)))
        environment.train(batch)
    return {name: np.nanmean(np.array(rows), axis=0) for name, rows in found.items()}


def first(forecast: Forecast, count: int) -> Forecast:
    """The forecast of the first ``count`` candidates: the batch of a trainer without a pool."""
    rates_P, pseudo_count_P = forecast.success_rates_P[:count], forecast.pseudo_count_P[:count]
    return Forecast(rates_P, pseudo_count_P, forecast.seen_P[:count], forecast.tokens_P[:count])


def value_share(forecast: Forecast, true_P: FloatArray, budget: int, least: int) -> float:
    """Value at true rates of the plan made with the belief, as a share of that of the plan made with true rates."""
    alpha_P, beta_P = np.maximum(forecast.alpha_P, 1e-3), np.maximum(forecast.beta_P, 1e-3)
    limits = same_limits(true_P.size, least, MOST)
    by_belief = solve(lambda rows, n: expected_knapsack_marginals(alpha_P[rows], beta_P[rows], n), budget, *limits)
    by_truth = solve(lambda rows, n: knapsack_marginals(true_P[rows], n), budget, *limits)
    value_P_N = knapsack_value(true_P, MOST)
    rows = np.arange(true_P.size)
    return float(value_P_N[rows, by_belief.counts_P].sum() / value_P_N[rows, by_truth.counts_P].sum())


def log_score(forecast: Forecast, true_P: FloatArray) -> float:
    """Mean log density of the true rates, kept within 0.0001 of 0 and 1, under the Beta beliefs."""
    p = np.clip(true_P, 1e-4, 1 - 1e-4)
    density = [
        (a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
        for x, a, b in zip(p, np.maximum(forecast.alpha_P, 1e-3), np.maximum(forecast.beta_P, 1e-3), strict=True)
    ]
    return float(np.mean(density))


def _recording(take: Callable[[int], tuple[str, ...]], taken: list[str]) -> Callable[[int], tuple[str, ...]]:
    def recorded(count: int) -> tuple[str, ...]:
        ids = take(count)
        taken.extend(ids)
        return ids

    return recorded


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each regime."""
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description="Errors of beliefs against exact success rates.")
    parser.add_argument("--regimes", default="skills,keys,tail")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="of each run; by default those of the regime")
    parser.add_argument("--divisor", type=int, default=1, help="of the groups of a step: 4 takes quarters of a step")
    parser.add_argument("--ablation", action="store_true", help="remove each ingredient in turn")
    given = parser.parse_args(words)
    compared = ablations if given.ablation else all_beliefs
    for name in given.regimes.split(","):
        regime = find_regime(name)
        seeds = range(given.first_seed, given.first_seed + given.seeds)
        runs = [measure(regime, seed, given.steps or regime.steps, compared, given.divisor) for seed in seeds]
        print(f"\n{name}, seeds {seeds.start} to {seeds.stop - 1}\n")
        print("| belief | squared error | of the paper's | log score | value of its plan, pool | no pool |")
        print("|---|---|---|---|---|---|")
        for belief in runs[0]:
            error, score, pooled, single = np.array([run[belief] for run in runs]).T
            of_paper = error / np.array([run["paper"][0] for run in runs])
            figures = (
                interval(error, 4),
                interval(of_paper, 2),
                interval(score, 1),
                interval(pooled, 2),
                interval(single, 2),
            )
            print(f"| {belief} | {' | '.join(figures)} |", flush=True)


def interval(values: FloatArray, digits: int) -> str:
    """A mean with its 95 % interval, without one for one seed."""
    found = estimate(values)
    within = "" if math.isnan(found.half) else f" ± {found.half:.{digits}f}"
    return f"{found.mean:.{digits}f}{within}".replace("-", "\u2212")


if __name__ == "__main__":
    main()
