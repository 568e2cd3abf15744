"""The evidence campaign's table: what a run is judged by, and that the table in the docs is the file's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from benchmarks import evidence_tables
from benchmarks.campaign import RESULTS, Line, read, tuned_settings
from benchmarks.evidence_tables import bootstrap, cost_to, is_stuck, measure, monotone, sign_test, target_of
from benchmarks.evidence_tables import evidence_tables as tables
from benchmarks.pass_at import pass_at
from scipy import stats


def _line(rule: str, level: float, regime: str = "keys/1", seed: int = 10) -> Line:
    """A rate that rises evenly from 0 to ``level`` at the regime's budget, and goes on."""
    rates = [0.0, level / 2, level, 1.5 * level]
    return {
        "rule": rule, "regime": regime, "seed": seed, "longer": 1.5, "spent": [0.0, 0.5, 1.0, 1.5],
        "held_out_p": rates, "hard_half_p": rates, "coverage": rates,
        "updates": [0, 10, 20, 30], "tokens": [0, 100, 400, 900],
    }  # fmt: skip


def test_a_run_is_measured_up_to_the_regimes_budget() -> None:
    found = measure(_line("uniform", 0.6))
    assert found.area == pytest.approx(30)
    assert (found.end, found.hard, found.solved) == pytest.approx((60, 60, 60))


def test_the_cost_of_a_target_is_where_the_rate_reaches_it() -> None:
    line = _line("uniform", 0.6)
    assert cost_to(line, 0.3) == pytest.approx(0.5)
    assert cost_to(line, 0.75) == pytest.approx(1.25)
    assert cost_to(line, 0.95) is None
    assert cost_to(line, 0.0) == 0
    assert cost_to(line, 0.75, "updates") == pytest.approx(25)
    assert cost_to(line, 0.75, "tokens") == pytest.approx(650)  # between 400 and 900


def test_a_rate_that_is_reached_once_by_noise_is_not_reached() -> None:
    """A curve that touches .5 at half of the budget and falls back reaches the mean of the two there."""
    noisy = _line("uniform", 0.6) | {"held_out_p": [0.0, 0.5, 0.3, 0.9]}
    assert monotone(noisy).tolist() == pytest.approx([0.0, 0.4, 0.4, 0.9])
    assert target_of(noisy) == pytest.approx(0.4)
    assert cost_to(noisy, 0.5) == pytest.approx(1.0 + 0.5 * 0.1 / 0.5)
    assert cost_to(noisy, target_of(noisy)) == pytest.approx(0.5)


def test_costs_are_shares_of_what_uniform_spends_and_chances_are_within_base_models() -> None:
    lines = [
        _line(rule, level + 0.1 * (instance == 2), f"keys/{instance}", seed)
        for instance in (1, 2)
        for seed in (1, 2)
        for rule, level in (("uniform", 0.4), (evidence_tables.DEFAULT, 0.6 if seed == 1 else 0.3))
    ]
    lines += [_line("oracle-pool@prompt", 0.8 + 0.1 * (instance == 2), f"keys/{instance}", 1) for instance in (1, 2)]
    text = tables(lines, tuned_settings(lines, []))
    row = next(line for line in text.splitlines() if line.startswith(f"| `{evidence_tables.DEFAULT}` | 0.50 |"))
    # Half of the runs are ahead; normalised scores are 0.5 and -0.25 in both base models.
    assert row.split(" | ")[2].startswith("0.12 (")
    half, late = (0.4 / 0.6, 0.5 / 0.7), (0.4 / 0.3, 0.5 / 0.4)
    assert row.split(" | ")[3] == f"{np.median(half + late):.2f}"


@pytest.mark.parametrize(("level", "stuck"), [(0.59, True), (0.61, False)])
def test_a_run_is_stuck_by_its_last_fifth(level: float, stuck: bool) -> None:
    """The last fifth of `_line` is its last point, at 1.5 times the level."""
    assert is_stuck(_line("uniform", level, "long/1")) is stuck


def test_stuck_runs_are_counted_by_whether_successes_are_kept() -> None:
    lines = [_line("uniform", level, "long/1", seed) for seed, level in enumerate((0.5, 0.7))]
    lines += [_line("ar3po@kept", 0.7, "long/1", seed) for seed in range(2)]
    text = tables(lines, tuned_settings(lines, []))
    assert "with kept successes: **0 of 2** (`ar3po@kept` 0 of 2)" in text
    assert "without them: **1 of 2** (`uniform` 1 of 2)" in text


def test_runs_are_drawn_within_base_models() -> None:
    means = bootstrap({("1", seed): 1.0 for seed in range(4)} | {("2", seed): float(seed) for seed in range(4)})
    assert means.mean() == pytest.approx((1 + 1.5) / 2, abs=0.02)
    assert means.std() == pytest.approx(np.sqrt(1.25 / 4) / 2, rel=0.05)  # the second base model alone varies


def test_few_runs_of_a_base_model_are_drawn_together_with_the_others() -> None:
    means = bootstrap({(base, seed): float(base) for base in ("1", "2") for seed in range(3)})
    assert {means.min(), means.max()} == {1.0, 2.0}, "a base model may be drawn six times or never"


def test_the_table_compares_runs_of_one_base_model_and_seed() -> None:
    lines = [
        _line(rule, level + 0.01 * seed, f"keys/{instance}", seed)
        for instance, low in ((1, 0.2), (2, 0.2))
        for seed in (1, 2)
        for rule, level in (("uniform", low), (evidence_tables.DEFAULT, low + 0.4))
    ]
    text = tables(lines, tuned_settings(lines, []))
    row = next(line for line in text.splitlines() if line.startswith(f"| `{evidence_tables.DEFAULT}` |"))
    assert "| 4 | +20.0 (+20.0 to +20.0) |  | 0.35 | +40.0" in row
    assert "4 of 4 | 0.125 |" in text


def test_the_table_in_the_docs_is_that_of_the_file() -> None:
    lines = read(RESULTS / "evidence.jsonl")
    text = (RESULTS.parents[1] / "docs" / "lab.md").read_text(encoding="utf-8")
    begin, end = (text.index(mark) for mark in evidence_tables.MARKS)
    written = text[begin + len(evidence_tables.MARKS[0]) : end].strip()
    tuned, passes = tuned_settings(lines, read(RESULTS / "tuning.jsonl")), read(RESULTS / "passes.jsonl")
    assert written == tables(lines, tuned, passes).strip()


def test_a_sign_test_counts_patterns_of_signs() -> None:
    """All of one sign is one pattern of 2^n, and its mirror image; scipy's permutation test agrees on others."""
    assert sign_test({("1", seed): 2.0 + seed for seed in range(6)}) == 2 / 64
    values = np.random.default_rng(0).normal(0.6, 1, 10)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_test({("1", seed): value for seed, value in enumerate(values.tolist())}) == pytest.approx(expected)
    with pytest.raises(ValueError, match="17 runs"):
        sign_test({("1", seed): 1.0 for seed in range(17)})


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer() -> None:
    hits_P = np.array([0, 1, 3, 6])
    expected = [
        np.mean([any(i < hits for i in drawn) for drawn in itertools.combinations(range(6), 4)]) for hits in hits_P
    ]
    assert pass_at(hits_P, 6, 4) == pytest.approx(np.mean(expected))
    assert pass_at(hits_P, 6, 1) == pytest.approx(np.mean(hits_P / 6))


def test_passes_are_compared_run_by_run() -> None:
    lines = [_line(rule, 0.5, "long/1") for rule in ("uniform", evidence_tables.DEFAULT)]
    passes = [
        line | {"pass_1": one, "pass_8": eight} for line, one, eight in zip(lines, (0.5, 0.6), (0.9, 0.85), strict=True)
    ]
    text = tables(lines, tuned_settings(lines, []), passes)
    assert f"| `{evidence_tables.DEFAULT}` | 1 | 60.0 | 85.0 | +10.0 | -5.0 |" in text
    assert "pass@8" not in tables(lines, tuned_settings(lines, []))


def test_the_oracles_lead_is_the_unit() -> None:
    """Halfway between uniform and the oracle is 0.50, over the runs that both have."""
    rules = {"uniform": 0.4, evidence_tables.DEFAULT: 0.6, "oracle-pool@prompt@step=1/4": 0.8}
    lines = [_line(rule, level, seed=seed) for rule, level in rules.items() for seed in (0, 1)]
    names = ("uniform", evidence_tables.DEFAULT, evidence_tables.PRICED, "ar3po@kept")
    text = tables(lines, {("keys", name): name for name in names})
    assert f"| `{evidence_tables.DEFAULT}` | common | 2 | +10.0 (+10.0 to +10.0) | 0.50 |" in text
    assert "| `oracle-pool@prompt` | step=1/4 | 2 | +20.0 (+20.0 to +20.0) | 1.00 |" in text
