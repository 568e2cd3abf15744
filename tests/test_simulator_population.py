"""Populations: by name, fitted to records, and checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.simulator import PRESETS, Simulation, fit_population, population_of_trace
from knapsack_arena.simulator.population import Lengths
from knapsack_arena.simulator.recorded import fit_beta
from knapsack_arena.strategies import Batch, RolloutRequest
from knapsack_rl.beliefs.online_logistic import logistic
from knapsack_rl.metrics import status
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.trace import read_trace
from synthetic_run import record_run


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_functions_of_size_and_seed(name: str) -> None:
    one, same, other = PRESETS[name](500, 3), PRESETS[name](500, 3), PRESETS[name](500, 4)
    assert one.logits_P.tolist() == same.logits_P.tolist() != other.logits_P.tolist()
    assert one.prompt_ids == other.prompt_ids
    assert np.linalg.norm(one.loadings_PK, axis=1).mean() == pytest.approx(1, abs=0.03)
    assert logistic(one.held_out_logits_H).mean() == pytest.approx(logistic(one.logits_P).mean(), abs=0.06)
    with pytest.raises(ValueError, match="0 prompts"):
        PRESETS[name](0, 0)


def test_presets_run_from_hard_to_easy() -> None:
    means = {name: logistic(make(20_000, 0).logits_P).mean() for name, make in PRESETS.items()}
    assert sorted(means, key=means.__getitem__) == ["hard", "balanced", "late", "easy"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_ids": ("a", "a")}, "occurs twice"),
        ({"prompt_ids": ()}, "at least one prompt"),
        ({"log_tokens_P": np.zeros(3)}, r"log_tokens_P has shape \(3,\)"),
        ({"logits_P": np.array([0.0, np.inf])}, "logits_P holds a number that is not finite"),
    ],
)
def test_a_population_is_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["balanced"](2, 0), **fields)  # type: ignore[arg-type]


def test_bad_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cut at 0"):
        Lengths(longest=0)


def test_a_fitted_population_resembles_what_was_recorded() -> None:
    truth = PRESETS["easy"](3000, 7)
    simulation = Simulation(replace(truth, lengths=Lengths(spread=0.3, longest=2000)), seed=0)
    recorded = [simulation.generate(RolloutRequest(simulation.prompt_ids, np.full(3000, count))) for count in (2, 6)]
    fitted = fit_population(recorded, seed=1)
    assert fitted.prompt_ids == truth.prompt_ids
    there, here = logistic(truth.logits_P), logistic(fitted.logits_P)
    assert here.mean() == pytest.approx(there.mean(), abs=0.01)
    shares = [np.bincount(status(np.round(rates, 2)), minlength=5) / 3000 for rates in (there, here)]
    assert shares[0] == pytest.approx(shares[1], abs=0.04)
    assert np.corrcoef(there, here)[0, 1] > 0.7
    assert np.corrcoef(truth.log_tokens_P, fitted.log_tokens_P)[0, 1] > 0.95
    assert fitted.lengths.spread == pytest.approx(0.3, abs=0.02)
    assert fitted.lengths.longest <= 2000


def test_the_beta_distribution_behind_observed_rates_is_found() -> None:
    rng = np.random.default_rng(0)
    attempts = rng.integers(2, 20, 40_000)
    successes = rng.binomial(attempts, rng.beta(2.0, 3.0, attempts.size))
    assert fit_beta(attempts, successes) == pytest.approx((2.0, 3.0), rel=0.05)
    assert all(np.isfinite(fit_beta(np.array([8, 8]), np.array([8, 8]))))  # even if all are alike


def test_a_trace_is_a_record(tmp_path: Path) -> None:
    trace = read_trace(record_run(tmp_path / "trace.jsonl", "uniform", steps=8))
    fitted = fit_population(step.outcomes for step in trace.steps)
    assert set(fitted.prompt_ids) == {prompt_id for step in trace.steps for prompt_id in step.outcomes.prompt_ids}
    simulation = Simulation(fitted, seed=0)
    outcomes = simulation.generate(RolloutRequest(simulation.take(16), np.full(16, 8)))
    simulation.train(Batch(outcomes))
    recorded = np.mean([step.outcomes.success_PG.mean() for step in trace.steps])
    assert simulation.success_rates().mean() == pytest.approx(recorded, abs=0.06)


def test_a_population_of_a_trace_has_the_size_and_difficulty_that_is_asked_for(tmp_path: Path) -> None:
    """As the policy found its prompts: what it learned on 60 visits of each is not in it."""
    path = record_run(tmp_path / "trace.jsonl", "uniform", steps=240)
    first = [step.outcomes for step in read_trace(path).steps[:4]]  # 128 prompts, 32 a step
    start = np.mean([outcomes.success_PG.mean() for outcomes in first])
    end = np.mean([step.outcomes.success_PG.mean() for step in read_trace(path).steps[-4:]])
    assert end - start > 0.1
    one, same, other = (population_of_trace(path, 5000, seed) for seed in (3, 3, 4))
    assert one.logits_P.tolist() == same.logits_P.tolist() != other.logits_P.tolist()
    assert len(set(one.prompt_ids)) == 5000
    assert logistic(one.logits_P).mean() == pytest.approx(start, abs=0.03)
    assert len(population_of_trace(path, 7, 0).prompt_ids) == 7
    with pytest.raises(ValueError, match="0 prompts"):
        population_of_trace(path, 0, 0)


def test_every_recorded_prompt_serves_equally_often() -> None:
    solved, never = Outcomes.of_groups(0, [("a", [1.0] * 400)]), Outcomes.of_groups(1, [("b", [0.0] * 400)])
    rates = logistic(fit_population([solved, never], seed=5, prompts=9).logits_P)
    assert sorted(np.bincount((rates > 0.5).astype(int)).tolist()) == [4, 5]


def test_a_trace_that_grows_is_read_again_and_a_kill_may_cut_it(tmp_path: Path) -> None:
    path = record_run(tmp_path / "trace.jsonl", "uniform", steps=8)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    cut = population_of_trace(path, 64, 0)
    path.write_bytes(whole)
    assert population_of_trace(path, 64, 0).logits_P.tolist() != cut.logits_P.tolist()
    path.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[3:]]))
    with pytest.raises(ValueError, match=r"trace\.jsonl:3: not a record of a trace"):
        population_of_trace(path, 64, 0)
    path.write_text('{"prompt":"a","reward":1}\n')
    with pytest.raises(ValueError, match=r"trace\.jsonl:1: not a record of a trace"):
        population_of_trace(path, 64, 0)


def test_nothing_to_fit_is_said() -> None:
    with pytest.raises(ValueError, match="no rollout with an answer"):
        fit_population([Outcomes.of_groups(0, [("a", [float("nan")])])])
