"""When log odds are taken anew (`benchmarks.refresh`), and rates by normalised maximum likelihood for few rollouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.forecasts import LITTLE, Cautious
from benchmarks.refresh import Aged, Answered, Doubled
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.online_logistic import OnlineLogistic
from knapsack_rl.notation import PromptFeatures
from knapsack_rl.outcomes import Outcomes

# Prompts offered in each step, and those of them that are answered.
OFFERS = st.lists(
    st.tuples(st.sets(st.sampled_from("abcde"), min_size=1), st.sets(st.sampled_from("abcde"))), max_size=20
)


class Clock:
    """Log odds that are the number of earlier calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, prompt_ids: Sequence[str]) -> PromptFeatures:
        self.calls += 1
        return PromptFeatures(np.ones((len(prompt_ids), 1)), np.full((len(prompt_ids), 1), self.calls - 1.0))


@settings(max_examples=30, deadline=None)
@given(OFFERS, st.sampled_from([1, 2, 4, math.inf]))
def test_log_odds_are_as_old_as_allowed(offers: list[tuple[set[str], set[str]]], most: float) -> None:
    beliefs, taken = Aged(40, Clock(), most), dict[str, int]()
    for step, (offered, _) in enumerate(offers):
        taken |= {each: step for each in offered if each not in taken or step - taken[each] >= most}
        found = beliefs.look(sorted(offered)).confidence_P_C
        np.testing.assert_array_equal(found[:, 0], [taken[each] for each in sorted(offered)])
    assert beliefs.offered == sum(len(offered) for offered, _ in offers)
    assert most > 1 or beliefs.looked_at == beliefs.offered
    assert most < math.inf or beliefs.looked_at == len(taken)


@settings(max_examples=30, deadline=None)
@given(OFFERS)
def test_an_answer_drops_log_odds(offers: list[tuple[set[str], set[str]]]) -> None:
    beliefs, taken = Answered(40, Clock()), dict[str, int]()
    for step, (offered, answered) in enumerate(offers):
        taken = dict.fromkeys(offered, step) | taken
        found = beliefs.look(sorted(offered))
        np.testing.assert_array_equal(found.confidence_P_C[:, 0], [taken[each] for each in sorted(offered)])
        rows = [row for row, each in enumerate(sorted(offered)) if each in answered]
        if rows:
            ids = [sorted(offered)[row] for row in rows]
            groups = Outcomes.of_groups(step, [(each, [0.0, 1.0]) for each in ids])
            beliefs.observe(replace(groups, features=found.take(np.array(rows))))
            taken = {each: at for each, at in taken.items() if each not in ids}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.floats(0.01, 1), st.floats(0.5, 8), st.sampled_from([0.9, 1.0]), st.integers(0, 99))
def test_information_doubles_no_more_often_than_its_bound(
    size: int, longest: float, ridge: float, discount: float, seed: int
) -> None:
    """At most d log2(1 + T / (d lambda)), where the squared length of an input is at most 1 and its weight n / 4."""
    random, steps, prompts, rollouts = np.random.default_rng(seed), 40, 6, 8.0
    rules = [Doubled(40, Clock(), decay) for decay in (True, False)]
    fit, prior = OnlineLogistic(np.zeros(size), np.full(size, ridge), discount), size * math.log(ridge)
    before = None
    for step in range(steps):
        inputs = random.normal(size=(prompts, size))
        inputs *= longest / np.linalg.norm(inputs, axis=1, keepdims=True)
        after = OnlineLogistic(fit.prior_F, fit.ridge_F, discount)
        after.weights_F, after.precision_F_F = fit.weights_F, fit.precision_F_F
        after.learn(inputs, random.integers(0, 9, prompts).astype(float), np.full(prompts, rollouts))
        bound = size * math.log2(1 + (step + 1) * prompts * rollouts / 4 / (size * ridge))
        for rule in rules:
            earlier = rule.refreshes
            rule.look("ab")
            rule.count(before, after)
            assert rule.kept == {} if rule.refreshes > earlier else len(rule.kept) == 2
            assert rule.refreshes <= rule.most_refreshes <= bound
        if rules[0].refreshes == 0:
            assert np.linalg.slogdet(after.precision_F_F)[1] < prior + math.log(2)
        before = fit = after
    assert discount < 1 or rules[0].refreshes == rules[1].refreshes


def test_rates_of_prompts_with_little_evidence_are_nearer_to_a_half() -> None:
    random, ids = np.random.default_rng(0), [f"p{i}" for i in range(60)]
    features = PromptFeatures(random.normal(size=(60, 8)), random.normal(size=(60, 1)))
    plain, cautious = CalibratedBeliefs(1e6), Cautious(1e6)
    for step in range(4):
        rows = np.arange(10 * step, 10 * step + 10)
        groups = [(ids[row], (random.random(6) < 0.15).astype(float).tolist()) for row in rows]
        for each in (plain, cautious):
            each.observe(replace(Outcomes.of_groups(step, groups), features=features.take(rows)))
    rates, others = (each.forecast(ids, 4, features).success_rates_P for each in (plain, cautious))
    assert pytest.approx(4 / (4 + 4)) == LITTLE
    np.testing.assert_array_equal(rates[:40], others[:40])  # six rollouts each
    assert (np.abs(others[40:] - 0.5) < np.abs(rates[40:] - 0.5)).all()
