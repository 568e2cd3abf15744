"""Gradients of single prompts, their products with a direction, and the plans and affinities that use them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import affinity
from benchmarks.affinity import Tasks
from benchmarks.directions import (
    Answers,
    DirectionOracle,
    DirectionPlanner,
    RatesAlone,
    directed_gain,
    further_items,
    preconditioned,
)
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.lab.environment import LanguageModelEnvironment
from knapsack_arena.lab.policy import Policy
from knapsack_arena.lab.regimes import keys, skills
from knapsack_arena.registry import RuleContext
from knapsack_arena.strategies import OneRound, StepSpec, run_step
from knapsack_rl.tasks.tiny_model import answer_probabilities
from tiny_regimes import tiny

RATES = st.lists(st.floats(0, 1), min_size=1, max_size=8).map(np.array)


@pytest.fixture
def environment() -> LanguageModelEnvironment:
    """A tiny policy whose held-out prompts are those that it is trained on."""
    return LanguageModelEnvironment(replace(tiny(), heldout=tiny().train), 0)


@pytest.fixture
def answers(environment: LanguageModelEnvironment) -> Answers:
    assert isinstance(environment.policy, Policy)
    environment.policy.model.double()
    return Answers(environment.policy)


def _context(environment: LanguageModelEnvironment) -> RuleContext:
    return RuleContext(groups=4, average=4, prompts=64, truth=environment.success_rates)


def _flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([each.flatten() for each in weights.values()])


def test_gradients_of_single_prompts_are_those_of_autograd(
    environment: LanguageModelEnvironment, answers: Answers
) -> None:
    items = environment.regime.train[:6]
    found, model = answers.per_sample(answers.rows(items)), answers.model
    for i in range(len(items)):  # one prompt at a time, without padding, by the library's own forward pass
        model.zero_grad()
        policy = answers.policy
        rate = answer_probabilities(model, [policy.prompts[i]], [policy.answers[i]], policy.pad)
        rate.double().log().sum().backward()  # type: ignore[no-untyped-call]
        wanted = torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        torch.testing.assert_close(found[i], wanted, rtol=1e-4, atol=1e-5)


def test_one_pass_in_forward_mode_has_all_products(environment: LanguageModelEnvironment, answers: Answers) -> None:
    rows = answers.rows(environment.regime.train[:12])
    direction = answers.mean_rate_gradient(rows)
    rates, slopes = answers.along(direction, rows)
    wanted = environment.success_rates([item.prompt for item in environment.regime.train[:12]])
    np.testing.assert_allclose(rates, wanted, rtol=1e-5)
    np.testing.assert_allclose(slopes, rates * (answers.per_sample(rows) @ _flat(direction)).numpy(), rtol=1e-5)
    assert slopes.mean() == pytest.approx(float(_flat(direction).square().sum()))
    # The layers' norms compute in float32, so that the difference quotient is coarse.
    size = 5e-4 / float(_flat(direction).norm())
    before, after = (
        answers.log_probs({name: w + sign * size * direction[name] for name, w in answers.weights.items()}, *rows)
        for sign in (-1, 1)
    )
    quotient = (after.exp() - before.exp()).detach().numpy() / (2 * size)
    np.testing.assert_allclose(quotient, slopes, atol=2e-2 * np.abs(slopes).max())


def test_the_direction_is_divided_as_adamw_divides(environment: LanguageModelEnvironment) -> None:
    """After one update from nothing the corrected second moment is the squared gradient."""
    assert isinstance(environment.policy, Policy)
    policy, answers = environment.policy, Answers(environment.policy)
    gradient = answers.mean_rate_gradient(answers.rows(environment.regime.train[:4]))
    assert torch.equal(_flat(preconditioned(policy, gradient)), _flat(gradient))
    for name, weight in policy.model.named_parameters():
        weight.grad = gradient[name].clone()
    policy.optimizer.step()
    (eps,) = (group["eps"] for group in policy.optimizer.param_groups)
    wanted = _flat(gradient) / (_flat(gradient).abs() + eps)
    torch.testing.assert_close(_flat(preconditioned(policy, gradient)), wanted, rtol=1e-3, atol=1e-4)


@given(RATES, st.floats(0.01, 100))
def test_gains_are_zero_where_nothing_is_gained(rates: np.ndarray, scale: float) -> None:
    slopes = rates * (1 - rates)
    gains = directed_gain(rates, scale * slopes)
    assert (gains >= 0).all()
    assert (gains[(rates == 0) | (rates == 1)] == 0).all()
    inside = slopes > 1e-6
    np.testing.assert_allclose(gains[inside], scale * np.sqrt(slopes[inside]))
    assert (directed_gain(rates, -slopes) == 0).all()


def test_without_directions_the_plan_is_by_rates_alone(environment: LanguageModelEnvironment) -> None:
    context, ids = _context(environment), environment.prompt_ids[:16]
    planner = DirectionPlanner(context, lambda rates, _: directed_gain(rates, rates * (1 - rates)))
    strategy = RatesAlone(context)
    found, wanted = (each.plan(ids, 16, 0) for each in (planner, strategy.allocator))
    assert found.counts_P.sum() == 16
    np.testing.assert_array_equal(found.counts_P, wanted.counts_P)


def test_a_prompt_that_leads_backwards_gets_nothing(environment: LanguageModelEnvironment) -> None:
    strategy = DirectionOracle(_context(environment))
    assert isinstance(strategy.allocator, DirectionPlanner)
    planner = strategy.allocator
    rates, gains = planner.gains(environment.prompt_ids, 0)
    np.testing.assert_allclose(rates, environment.success_rates(), rtol=1e-4)
    assert 0 < (gains == 0).mean() < 1  # of both kinds
    plan = planner.plan(environment.prompt_ids, 64, 0)
    assert (plan.counts_P[gains == 0] == 0).all()
    before = environment.step
    environment.train(run_step(strategy, StepSpec(0, 4, 16, environment.take), environment.generate).batch)
    assert environment.step == before + 1


@pytest.mark.parametrize("rule", [DirectionOracle, RatesAlone])
def test_without_a_policy_there_is_an_error(rule: type[OneRound]) -> None:
    with pytest.raises(ValueError, match="oracle"):
        rule(RuleContext())  # type: ignore[call-arg, arg-type]


def test_further_prompts_are_no_others() -> None:
    regime = skills()
    found = {item.prompt for item in further_items(regime)}
    assert len(found) == 200
    assert not found & {item.prompt for item in (*regime.train, *regime.heldout)}
    facts = keys(40)
    assert len(further_items(facts)) == 20
    assert set(further_items(facts)) < set(facts.train)
    with pytest.raises(ValueError, match="no further prompts"):
        further_items(tiny())


def test_the_error_to_first_order_grows_with_the_change(
    environment: LanguageModelEnvironment, answers: Answers
) -> None:
    items = environment.regime.train[:8]
    for along in (False, True):
        small, large = (affinity.first_order_errors(answers, items, share, along)[1] for share in (5e-4, 2e-3))
        assert large == pytest.approx(4 * small, rel=0.2)


def test_projections_keep_products() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(6, 40_000, generator=generator) + torch.randn(1, 40_000, generator=generator)
    found = affinity.projected(rows)
    exact = (rows @ rows.T).numpy()
    np.testing.assert_allclose(found @ found.T / exact.max(), exact / exact.max(), atol=0.15)


def _made_up() -> Tasks:
    """Three families of four tasks; the tasks of a family share half of their gradients' squared length."""
    random = np.random.default_rng(0)
    families, tasks = random.normal(size=(3, 1, 1, 200)), random.normal(size=(3, 4, 1, 200))
    rows = (families + tasks + 0.1 * random.normal(size=(3, 4, 10, 200))).reshape(-1, 200)
    names = tuple(f"{family}-{level}" for family in "abc" for level in range(4))
    return Tasks(names, (), np.repeat(np.arange(12), 10), np.tile([0.2, 0.5], 60), rows)


def test_affinities_recover_families_and_others_have_none() -> None:
    tasks = _made_up()
    for found in (affinity.cosines(tasks), affinity.subset_affinity(tasks, 4, subsets=60)):
        np.testing.assert_allclose(found, found.T)
        within, between, among_keys = affinity.levels(found, tasks.families)
        assert between < 0.1 * within
        assert np.isnan(among_keys)
        assert affinity.agreement(found, tasks.families)[0] == pytest.approx(1)


def test_training_on_the_same_prompts_is_the_same_affinity(environment: LanguageModelEnvironment) -> None:
    assert isinstance(environment.policy, Policy)
    answers, items = Answers(environment.policy), environment.regime.train
    twice = (*items[:3], *items[:3], *items[3:6])
    rates = environment.success_rates([item.prompt for item in twice])
    tasks = Tasks(("a-0", "a-1", "b-0"), twice, np.repeat(np.arange(3), 3), rates, np.zeros((9, 2)))
    found = affinity.trained_affinity(answers, tasks, updates=3)
    assert found[0, 1] > 0
    assert found[0, 2] == pytest.approx(found[1, 2])
    assert not np.diag(found).any()
