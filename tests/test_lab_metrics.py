"""Metrics of the laboratory against numbers worked out by hand, with true rates that a test sets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from knapsack_arena.compare.metrics import MetricsRecorder, log_scores
from knapsack_arena.lab.metrics import InstrumentedEnvironment, LabAssessor, values_of
from knapsack_arena.strategies import Batch, RolloutRequest, StepResult
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.notation import FloatArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes
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

    def generate(self, request: RolloutRequest) -> Outcomes:
        counts = zip(request.prompt_ids, request.counts_P.tolist(), strict=True)
        return outcomes({prompt_id: "1" * count for prompt_id, count in counts})

    def train(self, batch: Batch) -> None:
        self.step += 1

    def success_rates(self, prompt_ids: Sequence[str] | None = None) -> FloatArray:
        self.asked.append(tuple(prompt_ids or self.prompt_ids))
        return np.array([self.rates[prompt_id] for prompt_id in prompt_ids or self.prompt_ids])

    def held_out_rates(self) -> FloatArray:
        return np.array([0.2, 0.4])

    def hidden_states(self, prompt_ids: Sequence[str]) -> PromptFeatures:
        return PromptFeatures(np.ones((len(prompt_ids), 3)), np.zeros((len(prompt_ids), 0)))


def outcomes(groups: Mapping[str, str]) -> Outcomes:
    """``a="01"`` is a failure and a success of a, each of 10 tokens."""
    counts = np.array([len(text) for text in groups.values()])
    rewards = np.array([float(digit) for text in groups.values() for digit in text])
    return Outcomes(0, tuple(groups), counts, rewards, np.full(rewards.size, 10))


def drawn(groups: Mapping[str, str], expected: Sequence[float] | None = None) -> tuple[RolloutRequest, Outcomes]:
    found = outcomes(groups)
    return RolloutRequest(found.prompt_ids, found.counts_P, None if expected is None else np.array(expected)), found


def result_of(*rounds: tuple[RolloutRequest, Outcomes]) -> StepResult:
    return StepResult(Batch(rounds[-1][1]), rounds)


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def environment(scripted: Scripted) -> InstrumentedEnvironment:
    return InstrumentedEnvironment(scripted)


@pytest.fixture
def recorder(environment: InstrumentedEnvironment) -> MetricsRecorder:
    return _recorder(environment)


def _recorder(
    environment: InstrumentedEnvironment, followed: Sequence[str] | None = None, every: int = 1
) -> MetricsRecorder:
    return MetricsRecorder(environment, followed, LabAssessor(environment, groups=2, every=every))


def test_the_harder_half_and_what_is_forgotten(scripted: Scripted, recorder: MetricsRecorder) -> None:
    scripted.rates = {"a": 0.3, "b": 0.7, "c": 0.4, "d": 0.9}
    found = recorder.curves()
    assert found["mean_p"] == pytest.approx(0.575)
    assert found["held_out_p"] == pytest.approx(0.3)
    assert found["hard_half_p"] == pytest.approx(0.5)
    assert found["forgotten"] == pytest.approx((0.52 + 0.08) / 2)
    assert found["lost"] == 0.5


def test_nothing_to_forget_where_nothing_was_known(scripted: Scripted) -> None:
    scripted.rates = dict.fromkeys("abcd", 0.2)
    found = _recorder(InstrumentedEnvironment(scripted)).curves()
    assert not {"forgotten", "lost"} & found.keys()


def test_rollouts_of_groups_that_agree_over_all_rounds_have_no_gradient(recorder: MetricsRecorder) -> None:
    # a is mixed over both rounds, b agrees in both, c was drawn once.
    recorder.record(result_of(drawn({"a": "00", "b": "11"}), drawn({"a": "01", "b": "1", "c": "000"})), 0.0)
    found = recorder.curves()
    assert found["zero_gradient_rollouts"] == pytest.approx(6 / 10)
    assert found["coverage"] == 0.5


def test_beliefs_are_those_of_the_first_draw(recorder: MetricsRecorder) -> None:
    first = drawn({"a": "01", "b": "11"}, expected=[0.3, 0.5])
    recorder.record(result_of(first, drawn({"a": "1"}, expected=[0.9])), 0.0)
    found = recorder.curves()
    assert found["belief_error"] == pytest.approx((0.2**2 + 0) / 2)
    assert found["brier"] == pytest.approx((0.2**2 + 0.1 * 0.9 + 0.25) / 2)
    by_hand = -(0.1 * np.log(0.3) + 0.9 * np.log(0.7) + np.log(0.5)) / 2
    assert found["log_score"] == pytest.approx(by_hand)
    reliability = {(name, x): value for name, x, _, value in recorder.whole_run() if name.startswith("reliability")}
    assert reliability["reliability_groups", 0.3] == 1
    assert reliability["reliability_true", 0.3] == pytest.approx(0.1)
    assert reliability["reliability_expected", 0.5] == pytest.approx(0.5)


def test_a_rule_without_beliefs_has_no_scores(recorder: MetricsRecorder) -> None:
    recorder.record(result_of(drawn({"a": "01"})), 0.0)
    assert not {"belief_error", "brier", "log_score"} & recorder.curves().keys()


class Believer:
    """A strategy with beliefs that return given forecasts."""

    def __init__(self, *forecasts: Sequence[float]) -> None:
        self.beliefs = self
        self.forecasts = list(forecasts)

    def forecast(self, prompt_ids: Sequence[str], step: int, features: PromptFeatures | None = None) -> Forecast:
        rates = np.array(self.forecasts.pop(0))
        return Forecast(rates, np.ones(rates.size), np.ones(rates.size, dtype=bool), rates)


def test_what_is_believed_of_candidates_that_are_not_drawn_counts_too(
    environment: InstrumentedEnvironment, recorder: MetricsRecorder
) -> None:
    believer = Believer([0.3, 0.5, np.nan], [0.9], [0.1])
    environment.record_forecasts(believer)  # type: ignore[arg-type]
    environment.take(3)
    believer.beliefs.forecast(("a", "b", "c"), 0)
    believer.beliefs.forecast(("a",), 0)  # a later forecast in the same step is not that of planning
    step = result_of(drawn({"a": "01"}, expected=[0.3]))
    recorder.record(step, 0.0)
    environment.train(step.batch)
    assert recorder.curves()["candidate_error"] == pytest.approx((0.2**2 + 0) / 2)
    believer.beliefs.forecast(("a",), 1)
    recorder.record(result_of(drawn({"a": "01"})), 0.0)
    assert recorder.curves()["candidate_error"] == pytest.approx(0)


def test_nothing_is_recorded_of_a_strategy_without_beliefs(
    environment: InstrumentedEnvironment, recorder: MetricsRecorder
) -> None:
    environment.record_forecasts(object())  # type: ignore[arg-type]
    recorder.record(result_of(drawn({"a": "01"}, expected=[0.3])), 0.0)
    assert "candidate_error" not in recorder.curves()


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


def test_without_a_choice_the_optimum_leaves_no_prompt_out() -> None:
    rates = [0.01, 0.3, 0.99]
    _, best = values_of(np.array(rates), np.array([3, 3, 4]), chooses=False)
    assert best == pytest.approx(_best(rates, 10, low=2))
    assert best < _best(rates, 10, low=0)
    # Prompts that got nothing stay out, and a budget too small for a pair of each is the best of what it can be.
    _, alone = values_of(np.array(rates), np.array([10, 0, 0]), chooses=False)
    assert alone == pytest.approx(knapsack_value(np.array(rates), 10)[0, 10])
    _, few = values_of(np.array(rates), np.array([1, 1, 1]), chooses=False)
    assert few == pytest.approx(_best(rates, 3, low=0))


def test_the_share_is_of_all_that_was_taken_in_the_step(
    scripted: Scripted, environment: InstrumentedEnvironment, recorder: MetricsRecorder
) -> None:
    assert environment.take(3) == ("a", "b", "c")
    step = result_of(drawn({"a": "01", "c": "11"}))
    recorder.record(step, 0.0)
    rates = np.array([scripted.rates[name] for name in "acb"])
    spent, best = values_of(rates, np.array([2, 2, 0]), chooses=True)
    environment.train(step.batch)
    assert environment.taken == []
    assert recorder.curves()["value_share"] == pytest.approx(spent / best)
    # With no more prompts than groups there is no choice, and of four rollouts each of two prompts gets two.
    environment.take(2)
    recorder.record(result_of(drawn({"a": "01", "b": "11"})), 0.0)
    assert recorder.curves()["value_share"] == 1.0


def test_only_every_few_steps_are_compared_with_the_truth(scripted: Scripted) -> None:
    recorder = _recorder(InstrumentedEnvironment(scripted), ("a", "d"), every=3)
    assert scripted.asked == [("a", "d")]
    for _ in range(5):
        recorder.record(result_of(drawn({"b": "01"}, [0.4])), 0.0)
    assert scripted.asked == [("a", "d"), ("b",), ("b",)]
    assert recorder.curves()["mean_p"] == pytest.approx((0.1 + 0.98) / 2)


def test_time_in_the_rule(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # each reading is a second later
    monkeypatch.setattr("knapsack_arena.lab.metrics.time.perf_counter", lambda: float(next(clock)))
    environment = InstrumentedEnvironment(scripted)
    recorder = _recorder(environment)
    environment.hidden_states(["a"])
    step = result_of(drawn({"a": "01"}))
    environment.generate(step.rounds[0][0])
    recorder.record(step, seconds=2.0)
    environment.train(step.batch)
    found = recorder.curves()
    assert found["overhead"] == pytest.approx(2 / (2 + 1 + 1))
    assert found["prefill"] == pytest.approx(1 / 4)
    assert found["measuring"] == pytest.approx(2 / 11)
