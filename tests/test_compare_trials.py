"""One trial: its metrics against numbers worked out by hand, and what it spends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from knapsack_arena.compare.metrics import COUNT_EDGES, RATE_EDGES, MetricsRecorder, bin_of
from knapsack_arena.compare.trials import SIMULATOR, Trial, TrialSettings, run_trial
from knapsack_arena.registry import REGISTRY, make_strategy
from knapsack_arena.simulator import PRESETS, Simulation
from knapsack_arena.strategies import Batch, RolloutRequest, StepResult, StepSpec, run_step
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes

SETTINGS = TrialSettings(prompts=64, groups=8, average=4, steps=20)


def trial(rule: str, preset: str, seed: int, settings: TrialSettings = SETTINGS) -> Trial:
    return Trial(SIMULATOR, rule, preset, seed, settings)


class Policy:
    """Four prompts whose true rates a test sets."""

    prompt_ids = ("a", "b", "c", "d")

    def __init__(self) -> None:
        self.rates = {"a": 0.005, "b": 0.3, "c": 0.6, "d": 0.995}

    def success_rates(self, prompt_ids: Sequence[str] | None = None) -> FloatArray:
        return np.array([self.rates[prompt_id] for prompt_id in prompt_ids or self.prompt_ids])

    def held_out_rates(self) -> FloatArray:
        return np.array([0.5, 0.7])


def _round(expected: Sequence[float] | None = None, **groups: str) -> tuple[RolloutRequest, Outcomes]:
    """A request and its outcomes, 10 tokens a rollout: ``a="01"`` is a failure and a success of a."""
    counts = np.array([len(text) for text in groups.values()])
    request = RolloutRequest(tuple(groups), counts, None if expected is None else np.array(expected))
    rewards = np.array([float(digit) for text in groups.values() for digit in text])
    return request, Outcomes(0, tuple(groups), counts, rewards, np.full(rewards.size, 10))


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def recorder(policy: Policy) -> MetricsRecorder:
    return MetricsRecorder(policy)  # type: ignore[arg-type]


def test_before_the_first_step(recorder: MetricsRecorder) -> None:
    assert recorder.curves() == {
        "mean_p": pytest.approx(1.9 / 4),
        "held_out_p": pytest.approx(0.6),
        "hard_quarter_p": 0.005,
        "coverage": 0.0,
        "seconds": 0.0,
    }


def test_one_round(recorder: MetricsRecorder) -> None:
    first = _round([0.0, 0.3, 0.5, 0.9], a="00", b="1000", c="11", d="")
    recorder.record(StepResult(Batch(first[1]), (first,)), seconds=0.25)
    assert (recorder.steps, recorder.rollouts, recorder.tokens, recorder.rounds) == (1, 8, 80, 1)
    curves = recorder.curves()
    assert curves["coverage"] == 0.5  # b and c
    assert curves["mixed_prompts"] == pytest.approx(1 / 3)  # b, of the three that were drawn
    assert curves["mixed_rollouts"] == 0.5  # its 4 of 8
    assert curves["mixed_groups"] == 125
    # Of a, b, c: (0 - .005)^2, 0, (.5 - .6)^2, and p (1 - p) = .004975, .21, .24; d was not drawn.
    assert curves["belief_error"] == pytest.approx((0.000025 + 0.01) / 3)
    assert curves["brier"] == pytest.approx(0.155)
    by_hand = [0.005 * np.log(1000) - 0.995 * np.log(0.999), -0.3 * np.log(0.3) - 0.7 * np.log(0.7), np.log(2)]
    assert curves["log_score"] == pytest.approx(np.mean(by_hand))
    assert curves["seconds"] == 0.25


def test_shares_begin_anew_and_rounds_add_up(recorder: MetricsRecorder, policy: Policy) -> None:
    first = _round([0.0, 0.3, 0.5, 0.9], a="00", b="1000", c="11", d="")
    recorder.record(StepResult(Batch(first[1]), (first,)), 0.0)
    recorder.curves()
    policy.rates |= {"a": 0.1, "b": 0.2, "c": 0.9}
    pilot, rest = _round(b="00", d="11"), _round(d="110")
    trained = _round(d="11110")[1]
    recorder.record(StepResult(Batch(trained), (pilot, rest)), 0.5)
    assert (recorder.steps, recorder.rollouts, recorder.tokens, recorder.rounds) == (2, 15, 150, 3)
    curves = recorder.curves()
    assert curves["mean_p"] == pytest.approx((0.1 + 0.2 + 0.9 + 0.995) / 4)
    assert curves["hard_quarter_p"] == 0.1  # a, the hardest at the start
    assert curves["coverage"] == 0.75  # and d
    assert curves["mixed_prompts"] == 0.5  # d, of b and d
    assert curves["mixed_rollouts"] == pytest.approx(5 / 7)
    assert curves["mixed_groups"] == pytest.approx(1000 / 7)
    assert "belief_error" not in curves  # no round had expected rates
    assert curves["seconds"] == 0.5


def test_allocation_by_the_rate_at_the_time_and_over_all_rounds(recorder: MetricsRecorder, policy: Policy) -> None:
    first = _round(a="00", b="1000", c="11", d="")
    recorder.record(StepResult(Batch(first[1]), (first,)), 0.0)
    policy.rates["b"] = 0.2
    pilot, rest = _round(b="00", d="11"), _round(d="110")
    recorder.record(StepResult(Batch(pilot[1]), (pilot, rest)), 0.0)
    groups = {(0.0, 2.0), (0.3, 4.0), (0.6, 2.0), (0.99, 0.0), (0.2, 2.0), (0.99, 5.0)}
    found = list(recorder.allocation())
    assert {(x, y): value for name, x, y, value in found if name == "allocation"} == dict.fromkeys(groups, 1.0)
    assert {(x, y): value for name, x, y, value in found if name == "allocation_rollouts"} == {
        (x, y): y for x, y in groups if y
    }
    assert list(recorder.allocation()) == []  # since the last call, nothing


def test_reliability_and_transitions_of_the_whole_run(recorder: MetricsRecorder, policy: Policy) -> None:
    first = _round([0.0, 0.3, 0.5, 0.9], a="00", b="1000", c="11", d="")
    recorder.record(StepResult(Batch(first[1]), (first,)), 0.0)
    policy.rates |= {"a": 0.1, "b": 0.2, "c": 0.9}
    found = {(name, x, y): value for name, x, y, value in recorder.whole_run()}
    assert found == {
        **{("reliability_groups", x, None): 1.0 for x in (0.0, 0.3, 0.5)},
        ("reliability_expected", 0.0, None): 0.0,
        ("reliability_expected", 0.3, None): 0.3,
        ("reliability_expected", 0.5, None): 0.5,
        ("reliability_true", 0.0, None): 0.005,
        ("reliability_true", 0.3, None): 0.3,
        ("reliability_true", 0.5, None): 0.6,
        # a: extremely hard to hard; b and c: medium to hard and to easy; d stays extremely easy.
        ("transition", 0.0, 1.0): 1.0,
        ("transition", 2.0, 1.0): 1.0,
        ("transition", 2.0, 3.0): 1.0,
        ("transition", 4.0, 4.0): 1.0,
    }


def test_bins_hold_their_lower_edge_and_the_last_what_lies_beyond() -> None:
    assert RATE_EDGES[bin_of(np.array([0.0, 0.0099, 0.01, 0.5, 0.99, 1.0]), RATE_EDGES)].tolist() == [
        0.0,
        0.0,
        0.01,
        0.5,
        0.99,
        0.99,
    ]
    assert COUNT_EDGES[bin_of(np.array([0, 1, 7, 128, 500]), COUNT_EDGES)].tolist() == [0, 1, 6, 128, 128]


def _scalars(frame: pl.DataFrame, metric: str = "mean_p") -> pl.DataFrame:
    return frame.filter(pl.col("metric") == metric, pl.col("point").is_not_null())


@pytest.mark.parametrize("rule", REGISTRY)
def test_every_rule_spends_the_same_rollouts(rule: str) -> None:
    rows = _scalars(run_trial(trial(rule, "balanced", 1, SETTINGS)))
    budget = 20 * 8 * 4
    assert rows["point"].to_list()[-1] == 100
    *before, last = rows["rollouts"].to_list()
    assert max(before) < budget <= last  # it stops at the first step that spends it
    assert rows["spent"].to_list() == [spent / budget for spent in (*before, last)]


@pytest.mark.parametrize("rule", REGISTRY)
def test_every_rule_spends_the_same_tokens(rule: str) -> None:
    settings = TrialSettings(64, 8, 4, 20, budget="tokens")
    rows = _scalars(run_trial(trial(rule, "balanced", 1, settings), tokens=300_000))
    *before, last = rows["tokens"].to_list()
    assert max(before) < 300_000 <= last
    assert rows["spent"].to_list() == [spent / 300_000 for spent in (*before, last)]


def test_uniform_sets_the_budget_in_tokens_and_is_measured_along_it() -> None:
    by_rollouts = _scalars(run_trial(trial("uniform", "balanced", 1, SETTINGS)))
    by_tokens = _scalars(run_trial(trial("uniform", "balanced", 1, TrialSettings(64, 8, 4, 20, budget="tokens"))))
    total = by_rollouts["tokens"].max()
    assert by_tokens["steps"].max() == 20
    assert by_tokens["spent"].to_list() == [tokens / total for tokens in by_tokens["tokens"]]
    assert by_tokens["spent"].to_list()[-1] == 1.0
    assert by_tokens["value"].to_list()[-1] == by_rollouts["value"].to_list()[-1]
    assert by_tokens["spent"].to_list() != by_rollouts["spent"].to_list()  # easier prompts have shorter answers


def test_curves_run_from_the_true_start_to_where_a_run_by_hand_ends() -> None:
    rows = run_trial(trial("beta", "hard", 2, SETTINGS))
    simulation = Simulation(PRESETS["hard"](64, 2), seed=2)
    first, *_, last = _scalars(rows)["value"].to_list()
    assert first == simulation.success_rates().mean()
    assert _scalars(rows).select("point", "spent", "steps", "rollouts", "tokens", "rounds").row(0) == (0, 0, 0, 0, 0, 0)
    assert _scalars(rows, "held_out_p")["value"][0] == simulation.held_out_rates().mean()
    strategy = make_strategy("beta", trial("beta", "hard", 2, SETTINGS).context())
    for step in range(20):
        simulation.train(run_step(strategy, StepSpec(step, 8, 32, simulation.take), simulation.generate).batch)
    assert last == simulation.success_rates().mean()


def test_no_point_is_lost_to_rounding() -> None:
    shares: list[float] = []
    rows = run_trial(trial("uniform", "easy", 0, TrialSettings(16, 4, 2, steps=100)), progress=shares.append)
    assert _scalars(rows)["point"].to_list() == list(range(101))
    assert shares == [point / 100 for point in range(1, 101)]
    windows = rows.filter(pl.col("metric") == "allocation")
    assert windows.group_by("point").agg(pl.col("value").sum()).sort("point").rows() == [
        (33, 33 * 4.0),
        (67, 34 * 4.0),
        (100, 33 * 4.0),
    ]


def test_the_same_trial_gives_the_same_numbers() -> None:
    repeated = trial("reinforce-ada-balanced", "late", 5, SETTINGS)
    first, second = (run_trial(repeated).filter(pl.col("metric") != "seconds") for _ in range(2))
    assert first.equals(second)
    other = run_trial(trial(repeated.rule, repeated.preset, 6, SETTINGS)).filter(pl.col("metric") != "seconds")
    assert not first.equals(other)


def test_a_rule_that_does_not_spend_the_budget_is_stopped(tmp_path: Path) -> None:
    file = tmp_path / "timid.py"
    file.write_text(
        "import numpy as np\n"
        "from knapsack_arena.strategies import Batch, RolloutRequest\n"
        "class Timid:\n"
        "    def step(self, spec):\n"
        "        return Batch((yield RolloutRequest(spec.take(1), np.array([2]))))\n"
        "    def state_dict(self): return {}\n"
        "    def load_state_dict(self, state): ...\n"
    )
    with pytest.raises(ValueError, match="after 50 steps only 10 % of the budget is spent"):
        run_trial(trial(f"{file}:Timid", "easy", 0, TrialSettings(256, 125, 8, 1)))
