"""CoBA-RL: its schedule, its value, its heap, and how its released code differs from the paper."""

from __future__ import annotations

from math import exp
from pathlib import Path

import numpy as np
import pytest

from knapsack_arena.published.coba import KAPPA, Coba, alpha_of, coba_marginals, released_counts
from knapsack_rl import Outcomes
from knapsack_rl.files import BeliefFileError

VARIANTS = pytest.mark.parametrize("released", [False, True])


def gain(p: float, n: int, alpha: float, tau: float) -> float:
    """V(n + 1, p) - V(n, p) by the paper's formula, but for the density's constant."""
    density = p ** (alpha - 1) * (1 - p) ** (KAPPA - alpha - 1)
    return density * (exp(-n / tau * p * (1 - p)) - exp(-(n + 1) / tau * p * (1 - p)))


def by_heap(rates: list[float], spare: int, alpha: float, tau: float, low: int, high: int) -> list[int]:
    """One rollout at a time to whoever gains most: their heap, without the heap."""
    counts = [low] * len(rates)
    for _ in range(spare):
        open_ = [i for i in range(len(rates)) if counts[i] < high]
        if not open_:
            break
        counts[max(open_, key=lambda i: gain(rates[i], counts[i], alpha, tau))] += 1
    return counts


def groups_of(rates: dict[str, float], size: int = 20) -> list[tuple[str, list[float]]]:
    return [(name, [1.0] * round(p * size) + [0.0] * (size - round(p * size))) for name, p in rates.items()]


@pytest.mark.parametrize(
    ("failure", "alpha"),
    [
        (1.0, 10.0),
        (0.75, 7.75),
        (0.5, 5.5),  # both branches meet here
        (0.4, 1 + 9 / (1 + exp(1.0))),
        (0.0, 1 + 9 / (1 + exp(5.0))),
    ],
)
def test_the_schedule(failure: float, alpha: float) -> None:
    assert alpha_of(failure) == pytest.approx(alpha)


@pytest.mark.parametrize(("failure", "most"), [(0.9, "easy"), (0.5, "middle"), (0.1, "hard")])
def test_easy_prompts_first_and_hard_ones_later(failure: float, most: str) -> None:
    # The density peaks at (alpha - 1) / (kappa - 2), which is the failure itself, bent: .9, .5, .018
    coba = Coba()
    coba.observe(Outcomes.of_groups(0, groups_of({"easy": 0.9, "middle": 0.5, "hard": 0.1})))
    coba.failures = [failure]
    counts = dict(zip(("easy", "middle", "hard"), coba.plan(["easy", "middle", "hard"], 60, 1).counts_P, strict=True))
    assert max(counts, key=lambda name: counts[name]) == most


@pytest.mark.parametrize("seed", range(10))
def test_the_knapsack_is_their_heap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rates = {f"p{i}": round(p * 20) / 20 for i, p in enumerate(rng.permutation(np.arange(1, 20))[:7] / 20)}
    coba = Coba(max_count=24)
    coba.observe(Outcomes.of_groups(0, groups_of(rates)))
    alpha = alpha_of(1 - float(np.mean(list(rates.values()))))
    assert coba.alpha() == pytest.approx(alpha)
    found = coba.plan(list(rates), 70, 1).counts_P.tolist()
    expected = by_heap(list(rates.values()), 70 - 14, alpha, 3.0, 2, 24)
    worth = [
        sum(gain(p, k, alpha, 3.0) for p, n in zip(rates.values(), c, strict=True) for k in range(2, n))
        for c in (found, expected)
    ]
    assert worth[0] == pytest.approx(worth[1], rel=1e-12)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1  # p and 1 - p tie at alpha = 5.5


@pytest.mark.parametrize("seed", range(20))
def test_the_released_code_step_by_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, low, high, alpha = int(rng.integers(3, 10)), 2, 40, float(rng.uniform(2, 9))
    rates = rng.choice(np.concatenate([rng.uniform(0.06, 0.98, 8), [0.0, 0.02, 0.995, 1.0]]), size, replace=False)
    spare = 10 * size - low * size
    band = [i for i in range(size) if 0.05 <= rates[i] <= 0.99]
    share = 0.8 if len(band) > size / 2 else 0.6 + 0.2 * (len(band) / size * 2)
    tau = 3 + 9 * min(float(np.var(rates[band])) / 0.1667, 1) if band else 3.0
    expected = [low] * size
    for i, n in zip(band, by_heap(rates[band].tolist(), int(spare * share), alpha, tau, low, high), strict=True):
        expected[i] = n
    left = low * size + spare - sum(expected)
    for group in ([i for i in range(size) if rates[i] < 0.05], band, [i for i in range(size) if rates[i] > 0.99]):
        open_ = [i for i in group if expected[i] < high]
        weights = {i: 1 - min(max(float(rates[i]), 1e-6), 1 - 1e-6) for i in open_}
        for i in open_:
            part = min(int(left * weights[i] / sum(weights.values())), high - expected[i])
            expected[i], left = expected[i] + part, left - part
        open_ = [i for i in open_ if expected[i] < high]
        each, first = divmod(left, len(open_)) if open_ else (0, 0)
        for k, i in enumerate(open_):
            part = min(each + (k < first), high - expected[i])
            expected[i], left = expected[i] + part, left - part
    assert left == 0
    assert released_counts(rates, alpha, 10 * size, low, high).tolist() == expected


def test_what_the_released_code_drops_is_given_all_the_same() -> None:
    # 10 spare, a third of what is left at each: 3, 2, 1; then 2, 1, 1 of the 4 that leaves, but the first has room for
    # one: their counts are 6, 5, 4, and a rollout is dropped that the limits have room for.
    assert released_counts(np.zeros(3), 5.5, 16, 2, 6).tolist() == [6, 6, 4]
    assert released_counts(np.array([0.5, 0.0, 1.0]), 5.5, 40, 2, 16).tolist() == [16, 16, 8]


@pytest.mark.parametrize("rate", [0.0, 1.0, 0.5])
def test_equal_prompts_get_equal_counts(rate: float) -> None:
    coba = Coba()
    ids = [f"p{i}" for i in range(6)]
    coba.observe(Outcomes.of_groups(0, groups_of(dict.fromkeys(ids, rate))))
    assert coba.plan(ids, 48, 1).counts_P.tolist() == [8] * 6


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_the_released_code_gives_more_to_the_first_of_equal_prompts(rate: float) -> None:
    # 36 spare, a sixth of what is left at each: 6, 5, 4, 3, 3, 2; then the 13 that leaves evenly: 3, 2, 2, 2, 2, 2
    assert released_counts(np.full(6, rate), 5.5, 48, 2, 128).tolist() == [11, 9, 8, 7, 7, 6]


@VARIANTS
def test_without_history_it_is_uniform_and_an_unseen_prompt_counts_as_a_half(released: bool) -> None:
    coba = Coba(released=released)
    assert coba.plan(["a", "b", "c"], 25, 0).counts_P.tolist() == [9, 8, 8]
    coba.observe(Outcomes.of_groups(0, groups_of({"half": 0.5, "hard": 0.1})))
    half, unseen, _ = coba.plan(["half", "unseen", "hard"], 40, 1).counts_P.tolist()
    assert abs(half - unseen) <= 1


def test_the_latest_visit_alone_is_the_pass_rate() -> None:
    coba = Coba()
    coba.observe(Outcomes.of_groups(0, groups_of({"a": 1.0})))
    coba.observe(Outcomes.of_groups(1, [("a", [1.0, 0.0, 0.0, 0.0])]))
    assert coba.plan(["a"], 8, 2).success_rates_P.tolist() == [0.25]
    assert coba.failures == [0.0, 0.75]


def test_a_step_without_answers_does_not_change_the_failure_rate() -> None:
    coba = Coba()
    coba.observe(Outcomes.of_groups(0, [("a", [np.nan, np.nan]), ("b", [])]))
    assert coba.failures == []
    coba.observe(Outcomes.of_groups(1, [("a", [np.nan, 1.0]), ("b", [0.0, 0.0]), ("c", [np.nan])]))
    assert coba.failures == [0.5]


@VARIANTS
def test_it_goes_on_after_a_resume_as_if_nothing_had_happened(released: bool, tmp_path: Path) -> None:
    rates = {f"p{i}": i / 20 for i in range(21)}
    kept, resumed = Coba(released=released), Coba(released=released)
    for step in range(5):
        kept.observe(Outcomes.of_groups(step, groups_of({name: p**step for name, p in rates.items()})))
    kept.save(tmp_path / "saved")
    resumed.load(tmp_path / "saved")
    for step in (5, 6):
        assert resumed.alpha() == kept.alpha()
        plans = [each.plan(list(rates), 200, step).counts_P.tolist() for each in (kept, resumed)]
        assert plans[0] == plans[1]
        for each in (kept, resumed):
            each.observe(Outcomes.of_groups(step, groups_of(rates)))


def test_a_missing_file_changes_nothing(tmp_path: Path) -> None:
    coba = Coba()
    coba.observe(Outcomes.of_groups(0, groups_of({"a": 0.25})))
    with pytest.raises(BeliefFileError):
        coba.load(tmp_path / "missing")
    assert coba.failures == [0.75]


def test_marginals_are_the_papers_value_differenced() -> None:
    table = coba_marginals(np.array([0.2, 0.7]), 3.3, 4.5, 30)
    for row, p in zip(table, (0.2, 0.7), strict=True):
        np.testing.assert_allclose(row, [gain(p, n, 3.3, 4.5) for n in range(30)], rtol=1e-9)
        np.testing.assert_allclose(row[1:] / row[:-1], exp(-p * (1 - p) / 4.5))  # geometric: Proposition 2.2
