"""What the laboratory measures, against numbers worked out by hand in a world whose true rates somebody sets."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

pytest.importorskip("polars")

from knapsack_rl.beliefs import Forecast
from knapsack_rl.compare import cells
from knapsack_rl.lab.meter import LabMeter, Watched, log_scores, values_of
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.strategy import Batch, Draw, Played
from knapsack_rl.values import knapsack_value


class Scripted:
    """Four prompts, their true rates, and rewards that are given."""

    prompt_ids = ("a", "b", "c", "d")
    step = 0

    def __init__(self) -> None:
        self.rates = {"a": 0.1, "b": 0.5, "c": 0.92, "d": 0.98}
        self.asked: list[tuple[str, ...]] = []

    def take(self, count: int) -> tuple[str, ...]:
        return self.prompt_ids[:count]

    def generate(self, draw: Draw) -> Outcomes:
        counts = zip(draw.prompt_ids, draw.counts_P.tolist(), strict=True)
        return outcomes({prompt_id: "1" * count for prompt_id, count in counts})

    def train(self, batch: Batch) -> None:
        self.step += 1

    def success_rates(self, prompt_ids: Sequence[str] | None = None) -> FloatArray:
        self.asked.append(tuple(prompt_ids or self.prompt_ids))
        return np.array([self.rates[prompt_id] for prompt_id in prompt_ids or self.prompt_ids])

    def held_out_rates(self) -> FloatArray:
        return np.array([0.2, 0.4])

    def hidden_states(self, prompt_ids: Sequence[str]) -> FloatArray:
        return np.ones((len(prompt_ids), 3))


def outcomes(groups: Mapping[str, str]) -> Outcomes:
    """``a="01"`` is a failure and a success of a, each of 10 tokens."""
    counts = np.array([len(text) for text in groups.values()])
    rewards = np.array([float(digit) for text in groups.values() for digit in text])
    return Outcomes(0, tuple(groups), counts, rewards, np.full(rewards.size, 10))


def drawn(groups: Mapping[str, str], expected: Sequence[float] | None = None) -> tuple[Draw, Outcomes]:
    found = outcomes(groups)
    return Draw(found.prompt_ids, found.counts_P, None if expected is None else np.array(expected)), found


def played(*rounds: tuple[Draw, Outcomes]) -> Played:
    return Played(Batch(rounds[-1][1]), rounds)


@pytest.fixture
def world() -> Scripted:
    return Scripted()


@pytest.fixture
def meter(world: Scripted) -> LabMeter:
    return LabMeter(Watched(world), groups=2)


def test_the_harder_half_and_what_is_forgotten(world: Scripted, meter: LabMeter) -> None:
    world.rates = {"a": 0.3, "b": 0.7, "c": 0.4, "d": 0.9}
    found = meter.curves()
    assert found["mean_p"] == pytest.approx(0.575)
    assert found["held_out_p"] == pytest.approx(0.3)
    assert found["hard_half_p"] == pytest.approx(0.5)
    assert found["forgotten"] == pytest.approx((0.52 + 0.08) / 2)
    assert found["lost"] == 0.5


def test_nothing_to_forget_where_nothing_was_known(world: Scripted) -> None:
    world.rates = dict.fromkeys("abcd", 0.2)
    found = LabMeter(Watched(world), groups=2).curves()
    assert not {"forgotten", "lost"} & found.keys()


def test_rollouts_of_groups_that_agree_over_all_rounds_are_dead(meter: LabMeter) -> None:
    # a is mixed over both rounds, b agrees in both, c was drawn once.
    meter.take_in(played(drawn({"a": "00", "b": "11"}), drawn({"a": "01", "b": "1", "c": "000"})), 0.0)
    found = meter.curves()
    assert found["dead_rollouts"] == pytest.approx(6 / 10)
    assert found["coverage"] == 0.5


def test_beliefs_are_those_of_the_first_draw(meter: LabMeter) -> None:
    first = drawn({"a": "01", "b": "11"}, expected=[0.3, 0.5])
    meter.take_in(played(first, drawn({"a": "1"}, expected=[0.9])), 0.0)
    found = meter.curves()
    assert found["belief_error"] == pytest.approx((0.2**2 + 0) / 2)
    assert found["brier"] == pytest.approx((0.2**2 + 0.1 * 0.9 + 0.25) / 2)
    by_hand = -(0.1 * np.log(0.3) + 0.9 * np.log(0.7) + np.log(0.5)) / 2
    assert found["log_score"] == pytest.approx(by_hand)
    reliability = {(name, x): value for name, x, _, value in meter.whole_run() if name.startswith("reliability")}
    assert reliability["reliability_groups", 0.3] == 1
    assert reliability["reliability_true", 0.3] == pytest.approx(0.1)
    assert reliability["reliability_expected", 0.5] == pytest.approx(0.5)


def test_a_rule_without_beliefs_has_no_scores(meter: LabMeter) -> None:
    meter.take_in(played(drawn({"a": "01"})), 0.0)
    assert not {"belief_error", "brier", "log_score"} & meter.curves().keys()


class Believer:
    """A strategy whose beliefs say what they are told to."""

    def __init__(self, *forecasts: Sequence[float]) -> None:
        self.beliefs = self
        self.forecasts = list(forecasts)

    def forecast(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        rates = np.array(self.forecasts.pop(0))
        return Forecast(rates, np.ones(rates.size), np.ones(rates.size, dtype=bool), rates)


def test_what_is_believed_of_candidates_that_are_not_drawn_counts_too(meter: LabMeter) -> None:
    believer = Believer([0.3, 0.5, np.nan], [0.9], [0.1])
    meter.watched.overhear(believer)  # type: ignore[arg-type]
    meter.watched.take(3)
    believer.forecast(("a", "b", "c"), 0)
    believer.forecast(("a",), 0)  # a second thought in the same step is none of planning
    step = played(drawn({"a": "01"}, expected=[0.3]))
    meter.take_in(step, 0.0)
    meter.watched.train(step.batch)
    assert meter.curves()["candidate_error"] == pytest.approx((0.2**2 + 0) / 2)
    believer.forecast(("a",), 1)
    meter.take_in(played(drawn({"a": "01"})), 0.0)
    assert meter.curves()["candidate_error"] == pytest.approx(0)


def test_nothing_is_overheard_where_nobody_believes(meter: LabMeter) -> None:
    meter.watched.overhear(object())  # type: ignore[arg-type]
    meter.take_in(played(drawn({"a": "01"}, expected=[0.3])), 0.0)
    assert "candidate_error" not in meter.curves()


def test_certain_and_wrong_costs_much_but_not_everything() -> None:
    assert log_scores(np.array([0.0, 1.0]), np.array([1.0, 1.0])) == pytest.approx([np.log(1000), -np.log(0.999)])


def _best(rates: Sequence[float], budget: int, low: int) -> float:
    """By trying all plans."""
    values = knapsack_value(np.array(rates), budget)
    plans = itertools.product(*[[n for n in range(budget + 1) if n == 0 or n >= 2] for _ in rates])
    return max(
        sum(values[i, n] for i, n in enumerate(plan)) for plan in plans if sum(plan) == budget and min(plan) >= low
    )


@pytest.mark.parametrize("counts", [[2, 6, 0], [8, 0, 0], [3, 3, 2], [1, 7, 0]])
def test_the_value_of_a_plan_and_of_the_best_one(counts: list[int]) -> None:
    rates = [0.1, 0.35, 0.9]
    table = knapsack_value(np.array(rates), 8)
    spent, best = values_of(np.array(rates), np.array(counts), chooses=True)
    assert spent == pytest.approx(sum(table[i, n] for i, n in enumerate(counts)))
    assert best == pytest.approx(_best(rates, 8, low=0))
    assert spent <= best + 1e-12


def test_who_cannot_choose_is_held_against_plans_that_leave_nobody_out() -> None:
    rates = [0.01, 0.3, 0.99]
    _, best = values_of(np.array(rates), np.array([3, 3, 4]), chooses=False)
    assert best == pytest.approx(_best(rates, 10, low=2))
    assert best < _best(rates, 10, low=0)
    # Prompts that got nothing stay out, and a budget too small for a pair of each is the best of what it can be.
    _, alone = values_of(np.array(rates), np.array([10, 0, 0]), chooses=False)
    assert alone == pytest.approx(knapsack_value(np.array(rates), 10)[0, 10])
    _, few = values_of(np.array(rates), np.array([1, 1, 1]), chooses=False)
    assert few == pytest.approx(_best(rates, 3, low=0))


def test_the_share_is_of_all_that_was_taken_in_the_step(world: Scripted, meter: LabMeter) -> None:
    assert meter.watched.take(3) == ("a", "b", "c")
    step = played(drawn({"a": "01", "c": "11"}))
    meter.take_in(step, 0.0)
    rates = np.array([world.rates[name] for name in "acb"])
    spent, best = values_of(rates, np.array([2, 2, 0]), chooses=True)
    meter.watched.train(step.batch)
    assert meter.watched.taken == []
    assert meter.curves()["value_share"] == pytest.approx(spent / best)
    # Who takes no more than the groups has nothing to choose, and of four rollouts each of two prompts gets two.
    meter.watched.take(2)
    meter.take_in(played(drawn({"a": "01", "b": "11"})), 0.0)
    assert meter.curves()["value_share"] == 1.0


def test_only_every_few_steps_are_held_against_the_truth(world: Scripted) -> None:
    meter = LabMeter(Watched(world), groups=2, followed=("a", "d"), every=3)
    assert world.asked == [("a", "d")]
    for _ in range(5):
        meter.take_in(played(drawn({"b": "01"}, [0.4])), 0.0)
    assert world.asked == [("a", "d"), ("b",), ("b",)]
    assert meter.curves()["mean_p"] == pytest.approx((0.1 + 0.98) / 2)


def test_time_in_the_rule(world: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # one second from each look to the next
    monkeypatch.setattr("knapsack_rl.lab.meter.time.perf_counter", lambda: float(next(clock)))
    watched = Watched(world)
    meter = LabMeter(watched, groups=2)
    watched.hidden_states(["a"])
    step = played(drawn({"a": "01"}))
    watched.generate(step.rounds[0][0])
    meter.take_in(step, seconds=2.0)
    watched.train(step.batch)
    found = meter.curves()
    assert found["overhead"] == pytest.approx(2 / (2 + 1 + 1))
    assert found["prefill"] == pytest.approx(1 / 4)
    assert found["measuring"] == pytest.approx(2 / 10)


def test_all_that_a_cell_of_the_laboratory_imports_is_in_its_key() -> None:
    pytest.importorskip("torch")
    from knapsack_rl.lab.cells import LabCell

    code = "import sys, knapsack_rl.lab.cells; print(*[m.__file__ for n, m in sys.modules.items() if n.startswith("
    code += "'knapsack_rl')])"
    files = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    decide = {str(path) for path in cells._deciding_files(LabCell.decided_beside)}
    empty = {str(cells.PACKAGE / folder / "__init__.py") for folder in ("compare", "lab")}
    assert {file for file in files if file not in decide} == empty
    ours = {path for path in decide if "/lab/" in path or "/tasks/" in path}
    assert len(ours) > 5
    assert not ours & {
        str(path) for path in cells._deciding_files()
    }  # an edit of the laboratory leaves the arena alone
