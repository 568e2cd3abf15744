"""GVM and CurES without gradients: their proportions, what has none, and the seeded choice of prompts."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest

from knapsack_rl import KnapsackAllocator, Outcomes
from knapsack_rl.allocator import Rule
from knapsack_rl.beliefs import PaperBeliefs
from knapsack_rl.oracle import GivenBeliefs
from knapsack_rl.rivals.gvm import Cures, cures_rule, gvm_rule, gvm_shares
from knapsack_rl.strategy import Draw, Played, Request, play

RULES = pytest.mark.parametrize("rule", [gvm_rule, cures_rule])


def given(rates: list[float]) -> GivenBeliefs:
    return GivenBeliefs(lambda ids: np.array([rates[int(i)] for i in ids]))


def planned(rule: Rule, rates: list[float], budget: int, high: int = 128) -> list[int]:
    allocator = KnapsackAllocator(given(rates), rule, 2, high)
    counts: list[int] = allocator.plan([str(i) for i in range(len(rates))], budget, 0).counts_P.tolist()
    return counts


def test_gvm_weighs_rare_successes_most_but_not_the_rarest() -> None:
    # p + .001 / p is least at p = sqrt(.001) = .0316, where it is twice that
    rates = np.linspace(0.001, 1, 100_000)
    shares = gvm_shares(rates)
    assert rates[np.argmax(shares)] == pytest.approx(0.001**0.5, abs=1e-4)
    assert shares.max() == pytest.approx((2 * 0.001**0.5) ** -0.5)
    assert gvm_shares(np.array([1e-6])) == pytest.approx([(1e-6 + 1e3) ** -0.5])


def test_gvm_divides_in_proportion() -> None:
    # 1 / sqrt of 1.001, .254 and .0785: .9995, 1.9842, 3.5692; 66 of 6.5529 are 10.1, 20.0, 35.9
    assert planned(gvm_rule, [1.0, 0.25, 0.0625], 66) == [10, 20, 36]


def test_cures_divides_in_proportion_and_both_sides_of_one_half_alike() -> None:
    # 5 : 4 : 4 : 3
    assert planned(cures_rule, [0.5, 0.2, 0.8, 0.1], 48) == [15, 12, 12, 9]


@RULES
def test_what_the_formula_gives_nothing_gets_the_least_until_the_others_are_full(rule: Rule) -> None:
    assert planned(rule, [0.0, 0.5, 0.0], 24) == [2, 20, 2]
    assert planned(rule, [0.0, 0.5, 0.0], 40, high=20) == [10, 20, 10]
    assert planned(rule, [0.0] * 4, 32) == planned(rule, [1.0] * 4, 32) == [8] * 4


@RULES
def test_limits_leave_no_choice_and_one_prompt_gets_it_all(rule: Rule) -> None:
    assert planned(rule, [0.0, 0.3, 0.5], 6, high=9) == [2, 2, 2]
    assert planned(rule, [0.0, 0.3, 0.5], 27, high=9) == [9, 9, 9]
    assert planned(rule, [0.3], 11) == [11]


@RULES
def test_unseen_prompts_count_as_one_half(rule: Rule) -> None:
    allocator = KnapsackAllocator(PaperBeliefs(min_rewards=1), rule)
    allocator.observe(Outcomes.of_groups(0, [("half", [1.0, 0.0]), ("never", [0.0, 0.0])]))
    assert allocator.plan(["new", "half", "never"], 22, 1).counts_P.tolist() == [10, 10, 2]


def request(step: int, groups: int, prompts: int, size: int = 8) -> Request:
    numbers = count()
    return Request(step, groups, groups * size, lambda k: tuple([str(next(numbers) % prompts) for _ in range(k)]))


def half_right(draw: Draw, step: int = 0) -> Outcomes:
    return Outcomes.of_groups(
        step,
        [(i, [float(k % 2) for k in range(n)]) for i, n in zip(draw.prompt_ids, draw.counts_P.tolist(), strict=True)],
    )


def played(strategy: Cures, step: int, groups: int = 4, prompts: int = 24) -> Played:
    return play(strategy, request(step, groups, prompts), lambda draw: half_right(draw, step))


def test_cures_draws_by_its_exponential_weights() -> None:
    # sqrt(p (1-p)) = .5 and .3, t = .2: odds of e to 1, so .7311; 1,500 draws have a standard deviation of .011
    strategy = Cures(given([0.5, 0.1]), seed=3, pool=2)
    first = [played(strategy, step, groups=1, prompts=2).batch.outcomes.prompt_ids == ("0",) for step in range(1500)]
    assert np.mean(first) == pytest.approx(1 / (1 + np.exp(-1)), abs=0.046)


def test_cures_draws_prompts_that_are_all_alike_evenly() -> None:
    for rate in (0.0, 1.0):
        strategy = Cures(given([rate] * 12), seed=0, pool=3)
        drawn = np.zeros(12)
        for step in range(450):
            drawn[[int(i) for i in played(strategy, step, prompts=12).batch.outcomes.prompt_ids]] += 1
        # 150 each of 450, with a standard deviation of 10
        assert drawn.sum() == 1800 and np.abs(drawn - 150).max() < 45


def test_cures_draws_depend_on_seed_and_step_alone_and_go_on_after_a_resume(tmp_path: Path) -> None:
    def make(seed: int = 5) -> Cures:
        return Cures(PaperBeliefs(min_rewards=1), seed=seed, pool=4)

    def trace(step_of: Cures, steps: range) -> list[tuple[tuple[str, ...], list[int]]]:
        outcomes = [played(step_of, step).batch.outcomes for step in steps]
        return [(each.prompt_ids, each.counts_P.tolist()) for each in outcomes]

    original, resumed = make(), make()
    before = trace(original, range(5))
    assert before == trace(make(), range(5)) != trace(make(seed=6), range(5))
    original.save(tmp_path / "cures")
    resumed.load(tmp_path / "cures")
    assert trace(resumed, range(5, 10)) == trace(original, range(5, 10))


def test_cures_takes_what_there_is_and_keeps_the_budget() -> None:
    step = played(Cures(PaperBeliefs(min_rewards=1), seed=0, pool=4), 0, groups=8, prompts=8)
    assert sorted(step.batch.outcomes.prompt_ids) == [str(i) for i in range(8)]
    assert step.rollouts == 64 and len(step.rounds) == 1


@pytest.mark.parametrize("wrong", [{"t": 0.0}, {"t": -1.0}, {"pool": 0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive temperature and a pool"):
        Cures(PaperBeliefs(), 0, **wrong)  # type: ignore[arg-type]
