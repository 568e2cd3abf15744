"""The simulated policy: its rollouts, its sampler, and what training moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.simulator import PRESETS, LearnerSettings, Population, Simulation
from knapsack_arena.simulator.counter_rng import normals, uniforms
from knapsack_arena.simulator.population import Lengths, logit
from knapsack_arena.strategies import Batch, RolloutRequest
from knapsack_rl.beliefs.online_logistic import logistic
from knapsack_rl.outcomes import Outcomes

STILL = LearnerSettings(own_rate=1.0, shared_rate=0.0, forgetting=float("inf"), noise=0.0)


def population(rates: Sequence[float], *, skills: int = 1, **fields: object) -> Population:
    """Prompts a, b, ... with these rates and loadings of 1; one held-out prompt at .5 that shares the skills."""
    size = len(rates)
    usual = Population(
        prompt_ids=tuple("abcdefghijklmnop"[:size]),
        logits_P=logit(np.array(rates)),
        loadings_PK=np.ones((size, skills)),
        log_tokens_P=np.full(size, np.log(100.0)),
        held_out_logits_H=np.zeros(1),
        held_out_loadings_HK=np.ones((1, skills)),
    )
    return replace(usual, **fields)  # type: ignore[arg-type]


def batch(**groups: Sequence[float]) -> Batch:
    return Batch(Outcomes.of_groups(0, list(groups.items())))


def draw(simulation: Simulation, **counts: int) -> Outcomes:
    return simulation.generate(RolloutRequest(tuple(counts), np.array(list(counts.values()))))


# ------------------------------------------------------------------------------------------------------ rollouts


def test_rollouts_succeed_at_the_true_rates() -> None:
    rates = np.array([0.0, 0.02, 0.5, 0.9, 1.0])
    got = draw(Simulation(population(rates), seed=3), a=20_000, b=20_000, c=20_000, d=20_000, e=20_000)
    assert np.abs(got.pass_rates_P - rates) == pytest.approx(0, abs=4 * 0.5 / 20_000**0.5)
    assert got.pass_rates_P[[0, 4]].tolist() == [0, 1]
    assert set(got.rewards_PG) == {0.0, 1.0}


def test_a_rollout_is_the_same_whoever_asks_for_it_in_however_many_rounds() -> None:
    at_once, in_rounds = (Simulation(population([0.3, 0.5, 0.7]), seed=1) for _ in range(2))
    whole = draw(at_once, a=9, b=9)
    first, second = draw(in_rounds, b=4, c=2), draw(in_rounds, b=5)
    assert np.concatenate([first.rewards_PG[:4], second.rewards_PG]).tolist() == whole.rewards_PG[9:].tolist()
    assert first.tokens_PG is not None and second.tokens_PG is not None and whole.tokens_PG is not None
    assert np.concatenate([first.tokens_PG[:4], second.tokens_PG]).tolist() == whole.tokens_PG[9:].tolist()


def test_steps_seeds_and_prompts_have_rollouts_of_their_own() -> None:
    simulation = Simulation(population([0.5, 0.5]), seed=1, settings=replace(STILL, own_rate=0.0))
    one = draw(simulation, a=64, b=64).rewards_PG
    assert one[:64].tolist() != one[64:].tolist()
    simulation.train(batch(a=[0, 1]))
    assert simulation.step == 1
    assert draw(simulation, a=64, b=64).rewards_PG.tolist() != one.tolist()
    assert draw(Simulation(population([0.5, 0.5]), seed=2), a=64, b=64).rewards_PG.tolist() != one.tolist()


def test_random_numbers_are_spread_evenly_and_do_not_hang_together() -> None:
    rows, numbers = np.repeat(np.arange(400), 100), np.tile(np.arange(100), 400)
    drawn = uniforms(5, 7, 0, rows, numbers)
    assert drawn.min() > 0 and drawn.max() < 1
    histogram = np.bincount((drawn * 20).astype(int), minlength=20)
    assert ((histogram - 2000) ** 2 / 2000).sum() < 43.8  # chi-squared, 19 degrees of freedom, 1 in 1,000
    others = [uniforms(5, 7, 1, rows, numbers), uniforms(5, 8, 0, rows, numbers), uniforms(6, 7, 0, rows, numbers)]
    for other in [*others, np.roll(drawn, 1), np.roll(drawn, 100)]:
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 4 / drawn.size**0.5
    bell = normals(5, 7, 0, rows, numbers)
    assert (bell.mean(), bell.std(), (np.abs(bell) < 1.96).mean()) == pytest.approx((0, 1, 0.95), abs=0.02)


def test_lengths_vary_around_each_median_and_are_cut() -> None:
    lengths = Lengths(spread=0.5, fall=0.0, longest=250)
    medians = np.log([40.0, 100.0, 4000.0])
    simulation = Simulation(population([0.5] * 3, log_tokens_P=medians, lengths=lengths), seed=0)
    tokens = draw(simulation, a=5000, b=5000, c=5000).tokens_PG
    assert tokens is not None
    groups = tokens.reshape(3, 5000)
    assert np.median(groups[:2], axis=1) == pytest.approx([40, 100], rel=0.03)
    assert np.log(groups[0]).std() == pytest.approx(0.5, abs=0.02)
    assert groups[1].max() == 250
    assert (groups[2] == 250).mean() > 0.99
    assert tokens.min() >= 1


def test_harder_prompts_have_longer_answers_and_practice_shortens_them() -> None:
    simulation = Simulation(PRESETS["balanced"](4000, 0), seed=0)
    rates = simulation.success_rates()
    got = simulation.generate(RolloutRequest(simulation.prompt_ids, np.full(4000, 8)))
    assert np.corrcoef(rates, np.log(got.mean_tokens_P))[0, 1] < -0.5
    practised = Simulation(population([0.1], lengths=Lengths(spread=0.0, fall=1.0)), seed=0, settings=STILL)
    assert draw(practised, a=1).tokens_PG == [100]
    while practised.success_rates()[0] < 0.9:
        practised.train(batch(a=[0, 1]))
    assert draw(practised, a=1).tokens_PG == [round(100 * np.exp(0.1 - practised.success_rates()[0]))]


# ------------------------------------------------------------------------------------------------------- sampler


@given(size=st.integers(1, 16), takes=st.lists(st.integers(1, 16), min_size=1, max_size=30), seed=st.integers(0, 9))
def test_every_prompt_comes_once_an_epoch_and_never_twice_in_a_take(size: int, takes: list[int], seed: int) -> None:
    simulation = Simulation(population([0.5] * size), seed=seed)
    taken: list[str] = []
    for k in takes:
        ids = simulation.take(min(k, size))
        assert len(set(ids)) == len(ids) == min(k, size)
        taken += ids
    for start in range(0, len(taken) - size + 1, size):
        assert sorted(taken[start : start + size]) == sorted(simulation.prompt_ids)


def test_epochs_have_orders_of_their_own() -> None:
    simulation = Simulation(PRESETS["hard"](200, 0), seed=4)
    first, second = simulation.take(200), simulation.take(200)
    assert set(first) == set(second)
    assert first != second
    assert Simulation(PRESETS["hard"](200, 0), seed=4).take(200) == first


@pytest.mark.parametrize("k", [0, 3])
def test_more_prompts_than_there_are_cannot_be_taken(k: int) -> None:
    with pytest.raises(ValueError, match=f"asked for {k} different prompts of 2"):
        Simulation(population([0.5, 0.5]), seed=0).take(k)


# ------------------------------------------------------------------------------------------------------ training


def test_a_mixed_group_teaches_its_prompt_and_a_dead_one_nothing() -> None:
    simulation = Simulation(population([0.2, 0.2, 0.2]), seed=0, settings=STILL)
    simulation.train(batch(a=[0, 1, 0, 0], b=[1, 1, 1, 1], c=[0, 0, 0, 0]))
    # By hand: g = (1/12) (1.5 * .8 + 3 * .5 * .2) = .125, size = sqrt(1.5^2 + 3 * .5^2) / 12 = sqrt(3) / 12.
    assert logit(simulation.success_rates()) - logit(np.array([0.2])) == pytest.approx([1.5 / 3**0.5, 0, 0], abs=1e-5)
    assert simulation.held_out_rates() == pytest.approx([0.5])


def test_shared_skills_carry_over_to_prompts_never_practised() -> None:
    loadings = np.array([[1.0, 0.0], [0.5, 0.5], [-1.0, 0.0]])
    people = population([0.5] * 3, skills=2, loadings_PK=loadings, held_out_loadings_HK=np.array([[2.0, 1.0]]))
    settings = replace(STILL, own_rate=0.0, shared_rate=0.1)
    simulation = Simulation(people, seed=0, settings=settings)
    simulation.train(batch(a=[0, 1]))
    # A group of 1 in 2 moves a by .1 * (.5 / sqrt(2)) / (1 / 2), which skill 1 carries in proportion to the loadings.
    learned = 0.1 * 0.5**0.5
    assert logit(simulation.success_rates()) == pytest.approx(learned * np.array([1, 0.5, -1]), abs=1e-5)
    assert logit(simulation.held_out_rates()) == pytest.approx([2 * learned], abs=1e-5)


def test_what_is_not_practised_is_forgotten_by_half() -> None:
    simulation = Simulation(population([0.5, 0.5]), seed=0, settings=replace(STILL, forgetting=10.0))
    simulation.train(batch(a=[0, 1, 0, 1]))
    learned = logit(simulation.success_rates())[0]
    assert learned > 0.1
    for _ in range(10):
        simulation.train(batch(b=[1, 1]))
    assert logit(simulation.success_rates()) == pytest.approx([learned / 2, 0])


def test_adam_steps_alike_whatever_the_scale_of_the_gradient_and_sgd_in_proportion() -> None:
    moved = {}
    for optimizer in ("adam", "sgd"):
        for scale in (0.5, 5.0):
            simulation = Simulation(population([0.5]), seed=0, settings=replace(STILL, optimizer=optimizer))  # type: ignore[arg-type]
            simulation.train(Batch(batch(a=[0, 1]).outcomes, scale_P=np.array([scale])))
            moved[optimizer, scale] = logit(simulation.success_rates())[0]
    assert moved["adam", 0.5] == pytest.approx(moved["adam", 5.0])
    assert moved["sgd", 0.5] == pytest.approx(10 * moved["sgd", 5.0], rel=1e-4)


def test_noise_moves_logits_as_far_as_it_says() -> None:
    simulation = Simulation(PRESETS["balanced"](2000, 0), seed=0, settings=replace(STILL, noise=0.05))
    start = simulation.population.logits_P
    for _ in range(100):
        simulation.train(batch(q000000=[1, 1]))
    walked = logit(simulation.success_rates()) - start
    assert np.sqrt((walked[np.abs(start) < 10] ** 2).mean()) == pytest.approx(0.05 * 100**0.5, rel=0.35)


def test_a_batch_may_be_empty_or_name_a_prompt_twice() -> None:
    simulation = Simulation(population([0.5]), seed=0, settings=STILL)
    simulation.train(Batch(Outcomes.of_groups(0, [])))
    assert (simulation.step, simulation.success_rates().tolist()) == (1, [0.5])
    once, twice = (Simulation(population([0.5]), seed=0, settings=STILL) for _ in range(2))
    once.train(Batch(Outcomes.of_groups(0, [("a", [0, 1])])))
    twice.train(Batch(Outcomes.of_groups(0, [("a", [0, 1]), ("a", [0, 1])])))
    assert logit(twice.success_rates())[0] == pytest.approx(2**0.5 * logit(once.success_rates())[0])


def test_the_same_run_ends_the_same() -> None:
    ends = []
    for _ in range(2):
        simulation = Simulation(PRESETS["late"](300, 1), seed=5)
        for _ in range(20):
            simulation.train(Batch(simulation.generate(RolloutRequest(simulation.take(32), np.full(32, 8)))))
        ends.append(simulation.success_rates())
    assert ends[0].tolist() == ends[1].tolist()
    assert ends[0].mean() > logistic(PRESETS["late"](300, 1).logits_P).mean()


def test_unknown_prompts_are_refused() -> None:
    simulation = Simulation(population([0.5]), seed=0)
    for ask in (lambda: draw(simulation, z=2), lambda: simulation.train(batch(z=[0, 1]))):
        with pytest.raises(ValueError, match="prompt 'z' is not in the population"):
            ask()
    with pytest.raises(ValueError, match="prompt 'z'"):
        simulation.success_rates(["a", "z"])
    with pytest.raises(ValueError, match="seed is -1"):
        Simulation(population([0.5]), seed=-1)
