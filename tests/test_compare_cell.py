"""One cell: what is measured, against numbers worked out by hand, and what is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from knapsack_rl.compare.cell import run_cell
from knapsack_rl.compare.cells import Arena, Cell
from knapsack_rl.compare.meter import COUNT_EDGES, RATE_EDGES, Meter, bin_of
from knapsack_rl.entrants import ENTRANTS, make_strategy
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.simulator import PRESETS, Simulation
from knapsack_rl.strategy import Batch, Draw, Played, Request, play

ARENA = Arena(prompts=64, groups=8, num_generations=4, steps=20)


class Policy:
    """Four prompts whose true rates somebody sets."""

    prompt_ids = ("a", "b", "c", "d")

    def __init__(self) -> None:
        self.rates = {"a": 0.005, "b": 0.3, "c": 0.6, "d": 0.995}

    def success_rates(self, prompt_ids: Sequence[str] | None = None) -> FloatArray:
        return np.array([self.rates[prompt_id] for prompt_id in prompt_ids or self.prompt_ids])

    def held_out_rates(self) -> FloatArray:
        return np.array([0.5, 0.7])


def _round(expected: Sequence[float] | None = None, **groups: str) -> tuple[Draw, Outcomes]:
    """A draw and what came of it, 10 tokens a rollout: ``a="01"`` is a failure and a success of a."""
    counts = np.array([len(text) for text in groups.values()])
    draw = Draw(tuple(groups), counts, None if expected is None else np.array(expected))
    rewards = np.array([float(digit) for text in groups.values() for digit in text])
    return draw, Outcomes(0, tuple(groups), counts, rewards, np.full(rewards.size, 10))


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def meter(policy: Policy) -> Meter:
    return Meter(policy)  # type: ignore[arg-type]


def test_before_the_first_step(meter: Meter) -> None:
    assert meter.curves() == {
        "mean_p": pytest.approx(1.9 / 4),
        "held_out_p": pytest.approx(0.6),
        "hard_quarter_p": 0.005,
        "coverage": 0.0,
        "seconds": 0.0,
    }


def test_one_round(meter: Meter) -> None:
    draw = _round([0.0, 0.3, 0.5, 0.9], a="00", b="1000", c="11", d="")
    meter.take_in(Played(Batch(draw[1]), (draw,)), seconds=0.25)
    assert (meter.steps, meter.rollouts, meter.tokens, meter.rounds) == (1, 8, 80, 1)
    curves = meter.curves()
    assert curves["coverage"] == 0.5  # b and c
    assert curves["mixed_prompts"] == pytest.approx(1 / 3)  # b, of the three that were drawn
    assert curves["mixed_rollouts"] == 0.5  # its 4 of 8
    assert curves["mixed_groups"] == 125
    # Of a, b, c: (0 - .005)^2, 0, (.5 - .6)^2, and p (1 - p) = .004975, .21, .24; d was not drawn.
    assert curves["belief_error"] == pytest.approx((0.000025 + 0.01) / 3)
    assert curves["brier"] == pytest.approx(0.155)
    assert curves["seconds"] == 0.25


def test_shares_begin_anew_and_rounds_add_up(meter: Meter, policy: Policy) -> None:
    first = _round([0.0, 0.3, 0.5, 0.9], a="00", b="1000", c="11", d="")
    meter.take_in(Played(Batch(first[1]), (first,)), 0.0)
    meter.curves()
    policy.rates |= {"a": 0.1, "b": 0.2, "c": 0.9}
    pilot, rest = _round(b="00", d="11"), _round(d="110")
    trained = _round(d="11110")[1]
    meter.take_in(Played(Batch(trained), (pilot, rest)), 0.5)
    assert (meter.steps, meter.rollouts, meter.tokens, meter.rounds) == (2, 15, 150, 3)
    curves = meter.curves()
    assert curves["mean_p"] == pytest.approx((0.1 + 0.2 + 0.9 + 0.995) / 4)
    assert curves["hard_quarter_p"] == 0.1  # a, the hardest at the start
    assert curves["coverage"] == 0.75  # and d
    assert curves["mixed_prompts"] == 0.5  # d, of b and d
    assert curves["mixed_rollouts"] == pytest.approx(5 / 7)
    assert curves["mixed_groups"] == pytest.approx(1000 / 7)
    assert "belief_error" not in curves  # nobody said what they expect
    assert curves["seconds"] == 0.5


def test_allocation_by_the_rate_at_the_time_and_over_all_rounds(meter: Meter, policy: Policy) -> None:
    first = _round(a="00", b="1000", c="11", d="")
    meter.take_in(Played(Batch(first[1]), (first,)), 0.0)
    policy.rates["b"] = 0.2
    pilot, rest = _round(b="00", d="11"), _round(d="110")
    meter.take_in(Played(Batch(pilot[1]), (pilot, rest)), 0.0)
    groups = {(0.0, 2.0), (0.3, 4.0), (0.6, 2.0), (0.99, 0.0), (0.2, 2.0), (0.99, 5.0)}
    found = list(meter.allocation())
    assert {(x, y): value for name, x, y, value in found if name == "allocation"} == dict.fromkeys(groups, 1.0)
    assert {(x, y): value for name, x, y, value in found if name == "allocation_rollouts"} == {
        (x, y): y for x, y in groups if y
    }
    assert list(meter.allocation()) == []  # since the last call, nothing


def test_reliability_and_transitions_of_the_whole_run(meter: Meter, policy: Policy) -> None:
    draw = _round([0.0, 0.3, 0.5, 0.9], a="00", b="1000", c="11", d="")
    meter.take_in(Played(Batch(draw[1]), (draw,)), 0.0)
    policy.rates |= {"a": 0.1, "b": 0.2, "c": 0.9}
    found = {(name, x, y): value for name, x, y, value in meter.whole_run()}
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


@pytest.mark.parametrize("rule", ENTRANTS)
def test_every_rule_spends_the_same_rollouts(rule: str) -> None:
    rows = _scalars(run_cell(Cell(rule, "balanced", 1, ARENA)))
    budget = 20 * 8 * 4
    assert rows["point"].to_list()[-1] == 100
    *before, last = rows["rollouts"].to_list()
    assert max(before) < budget <= last  # it stops at the first step that spends it
    assert rows["spent"].to_list() == [spent / budget for spent in (*before, last)]


@pytest.mark.parametrize("rule", ENTRANTS)
def test_every_rule_spends_the_same_tokens(rule: str) -> None:
    arena = Arena(64, 8, 4, 20, budget="tokens")
    rows = _scalars(run_cell(Cell(rule, "balanced", 1, arena), tokens=300_000))
    *before, last = rows["tokens"].to_list()
    assert max(before) < 300_000 <= last
    assert rows["spent"].to_list() == [spent / 300_000 for spent in (*before, last)]


def test_uniform_sets_the_budget_in_tokens_and_is_measured_along_it() -> None:
    by_rollouts = _scalars(run_cell(Cell("uniform", "balanced", 1, ARENA)))
    by_tokens = _scalars(run_cell(Cell("uniform", "balanced", 1, Arena(64, 8, 4, 20, budget="tokens"))))
    total = by_rollouts["tokens"].max()
    assert by_tokens["steps"].max() == 20
    assert by_tokens["spent"].to_list() == [tokens / total for tokens in by_tokens["tokens"]]
    assert by_tokens["spent"].to_list()[-1] == 1.0
    assert by_tokens["value"].to_list()[-1] == by_rollouts["value"].to_list()[-1]
    assert by_tokens["spent"].to_list() != by_rollouts["spent"].to_list()  # easier prompts have shorter answers


def test_curves_run_from_the_true_start_to_where_a_run_by_hand_ends() -> None:
    rows = run_cell(Cell("posterior", "hard", 2, ARENA))
    simulation = Simulation(PRESETS["hard"](64, 2), seed=2)
    first, *_, last = _scalars(rows)["value"].to_list()
    assert first == simulation.success_rates().mean()
    assert _scalars(rows).select("point", "spent", "steps", "rollouts", "tokens", "rounds").row(0) == (0, 0, 0, 0, 0, 0)
    assert _scalars(rows, "held_out_p")["value"][0] == simulation.held_out_rates().mean()
    strategy = make_strategy("posterior", Cell("posterior", "hard", 2, ARENA).setting())
    for step in range(20):
        simulation.train(play(strategy, Request(step, 8, 32, simulation.take), simulation.generate).batch)
    assert last == simulation.success_rates().mean()


def test_no_point_is_lost_to_rounding() -> None:
    told: list[float] = []
    rows = run_cell(Cell("uniform", "easy", 0, Arena(16, 4, 2, steps=100)), progress=told.append)
    assert _scalars(rows)["point"].to_list() == list(range(101))
    assert told == [point / 100 for point in range(1, 101)]
    windows = rows.filter(pl.col("metric") == "allocation")
    assert windows.group_by("point").agg(pl.col("value").sum()).sort("point").rows() == [
        (33, 33 * 4.0),
        (67, 34 * 4.0),
        (100, 33 * 4.0),
    ]


def test_the_same_cell_gives_the_same_numbers() -> None:
    cell = Cell("reinforce-ada-balanced", "late", 5, ARENA)
    first, second = (run_cell(cell).filter(pl.col("metric") != "seconds") for _ in range(2))
    assert first.equals(second)
    other = run_cell(Cell(cell.rule, cell.preset, 6, ARENA)).filter(pl.col("metric") != "seconds")
    assert not first.equals(other)


def test_a_rule_that_would_never_spend_the_budget_is_stopped(tmp_path: Path) -> None:
    file = tmp_path / "timid.py"
    file.write_text(
        "import numpy as np\n"
        "from knapsack_rl.strategy import Batch, Draw\n"
        "class Timid:\n"
        "    def step(self, request):\n"
        "        return Batch((yield Draw(request.take(1), np.array([2]))))\n"
        "    def save(self, path): ...\n"
        "    def load(self, path): ...\n"
    )
    with pytest.raises(ValueError, match="after 50 steps only 10 % of the budget is spent"):
        run_cell(Cell(f"{file}:Timid", "easy", 0, Arena(256, 125, 8, 1)))
