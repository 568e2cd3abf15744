"""Kept rollouts in the laboratory: what replaces what, with which weight, and what the rule is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from knapsack_arena.lab import trials
from knapsack_arena.lab.environment import LanguageModelEnvironment, Loss
from knapsack_arena.lab.options import split_rule
from knapsack_arena.strategies import Batch, RolloutRequest, StepSpec, run_step
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.notation import FloatArray
from knapsack_rl.rules import AllocationProblem
from tiny_regimes import tiny

Answer = list[int]


class ScriptedPolicy:
    """Answers with scripted rewards. An answer's tokens are its prompt's row, its number in the run, and its reward."""

    def __init__(self) -> None:
        self.script: dict[int, str] = {}
        self.numbers = 0
        self.log_prob = -1.0  # of every token
        self.learned: tuple[list[int], list[Answer], list[float]] = [], [], []

    def right(self, row: int, tokens: Answer) -> bool:
        return tokens[-1] == 1

    def success_rates(self, which: Sequence[int]) -> FloatArray:
        return np.full(len(which), 0.5)

    def hidden_states(self, which: Sequence[int]) -> FloatArray:
        return np.stack([[row % 3, row % 5, -0.5] for row in which])

    def sample(self, which: Sequence[int], counts: Sequence[int], generator: object) -> list[Answer]:
        answers = []
        for row, count in zip(which, counts, strict=True):
            for i in range(count):
                self.numbers += 1
                answers.append([row, self.numbers, int((self.script.get(row) or "0" * count)[i])])
        return answers

    def log_probs(self, which: Sequence[int], sampled: Sequence[Answer]) -> list[FloatArray]:
        assert [tokens[0] for tokens in sampled] == list(which)
        return [np.full(len(tokens), self.log_prob) for tokens in sampled]

    def learn(self, which: Sequence[int], sampled: Sequence[Answer], advantages: torch.Tensor) -> float:
        self.learned = list(which), [list(tokens) for tokens in sampled], advantages.tolist()
        return 0.0


class Lab:
    """An environment of this policy; its prompts are known by their rows."""

    def __init__(self, loss: Loss) -> None:
        self.policy = ScriptedPolicy()
        self.environment = LanguageModelEnvironment(tiny(), 0, loss, self.policy)

    def step(self, groups: Mapping[int, str], **statistics: FloatArray) -> dict[int, list[tuple[Answer, float]]]:
        """Sample groups with these rewards, and train on them; by row, what was trained on with its advantages."""
        self.policy.script = dict(groups)
        counts_P = np.array([len(text) for text in groups.values()])
        prompt_ids = tuple(self.environment.prompt_ids[row] for row in groups)
        outcomes = self.environment.generate(RolloutRequest(prompt_ids, counts_P))
        self.environment.train(Batch(outcomes, **statistics))
        assert outcomes.rewards_PG.tolist() == [float(digit) for text in groups.values() for digit in text]
        trained: dict[int, list[tuple[Answer, float]]] = {row: [] for row in groups}
        for row, tokens, advantage in zip(*self.policy.learned, strict=True):
            trained[row].append((tokens, round(advantage, 6)))
        return trained


def advantages(group: list[tuple[Answer, float]]) -> list[float]:
    return [advantage for _, advantage in group]


def numbers(group: list[tuple[Answer, float]]) -> set[int]:
    return {tokens[1] for tokens, _ in group}


SUCCESSES, FAILURES = Loss(scale=None, kept="successes"), Loss(scale=None, kept="failures")


def test_the_last_success_replaces_one_rollout_of_a_group_of_failures() -> None:
    lab = Lab(SUCCESSES)
    first = lab.step({0: "0110", 1: "0000", 2: "1111", 3: "01", 4: "11", 5: "1000"})
    assert lab.environment.replaced == 0
    assert advantages(first[0]) == [-0.5, 0.5, 0.5, -0.5]
    second = lab.step({0: "0000", 1: "0000", 2: "1111", 3: "0110", 4: "0", 5: "00"})
    assert lab.environment.replaced == 2  # not of prompt 1, which has none, and not of the single rollout of prompt 4
    # Prompt 0: one rollout, the last one, with the tokens and the reward of the later of its two successes.
    assert second[0][3][0] == [0, 3, 1]
    assert advantages(second[0]) == [-0.25, -0.25, -0.25, 0.75]
    assert numbers(second[0][:3]) < {21, 22, 23, 24}
    assert second[5][1][0] == [5, 17, 1]
    assert advantages(second[5]) == [-0.5, 0.5]
    # All others are what was sampled now.
    assert numbers(second[1]) == {25, 26, 27, 28} and numbers(second[2]) == {29, 30, 31, 32}
    assert numbers(second[3]) == {33, 34, 35, 36} and numbers(second[4]) == {37}
    assert advantages(second[1]) == advantages(second[2]) == [0.0] * 4
    assert sorted(advantages(second[3])) == [-0.5, -0.5, 0.5, 0.5]
    assert advantages(second[4]) == [0.0]
    # A success replaces what was kept before; what stood in for a failure is not kept anew, and is used again.
    third = lab.step({3: "000", 0: "00"})
    assert third[3][2][0] == [3, 35, 1]
    assert third[0][1][0] == [0, 3, 1]


def test_nothing_is_kept_unless_the_loss_asks_for_it() -> None:
    lab = Lab(Loss(scale=None))
    lab.step({0: "01"})
    assert advantages(lab.step({0: "00"})[0]) == [0.0, 0.0]
    assert (len(lab.environment.kept), lab.environment.replaced) == (0, 0)


def test_the_control_replaces_a_rollout_of_a_group_of_successes_by_a_failure() -> None:
    lab = Lab(FAILURES)
    lab.step({0: "1001", 1: "10"})
    second = lab.step({0: "1111", 1: "00", 2: "11"})
    assert second[0][3][0] == [0, 3, 0]
    assert advantages(second[0]) == [0.25, 0.25, 0.25, -0.75]
    assert numbers(second[1]) == {11, 12} and numbers(second[2]) == {13, 14}
    assert advantages(second[1]) == advantages(second[2]) == [0.0, 0.0]
    assert lab.environment.replaced == 1


@pytest.mark.parametrize(
    ("now", "ratio", "weight"),
    [(-1.25, True, np.exp(-0.75)), (-0.5, True, 1.0), (-1.25, False, 1.0)],
    ids=["less probable now", "truncated", "without the option"],
)
def test_a_kept_rollout_weighs_by_its_truncated_ratio(now: float, ratio: bool, weight: float) -> None:
    """The ratio of whole answers, of three tokens here; other rollouts of its group keep weight 1."""
    lab = Lab(Loss(scale=None, kept="successes", ratio=ratio))
    lab.step({0: "01"})
    lab.policy.log_prob = now
    found = lab.step({0: "0000", 1: "01"})
    assert advantages(found[0]) == pytest.approx([-0.25, -0.25, -0.25, 0.75 * weight], abs=1e-6)
    assert sorted(advantages(found[1])) == [-0.5, 0.5]


def test_a_batch_with_statistics_of_its_own_is_left_alone() -> None:
    """Their rule has put other rollouts into the mean than those that are trained on."""
    lab = Lab(SUCCESSES)
    lab.step({0: "01"})
    found = lab.step({0: "00"}, baseline_P=np.array([0.25]))
    assert advantages(found[0]) == [-0.25, -0.25]
    assert numbers(found[0]) == {3, 4}


def told(rule: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], LanguageModelEnvironment]:
    """Run two steps of a rule: the first with a success of each prompt, the second with failures alone.

    Returns:
        For each call of the rule, the ids and the kept ones of its forecast; and the environment.
    """
    policy = ScriptedPolicy()
    monkeypatch.setattr(trials, "find_regime", lambda name: tiny())  # the cache of regimes stays as it is
    monkeypatch.setattr(trials, "LanguageModelEnvironment", partial(LanguageModelEnvironment, policy=policy))
    trial = trials.lab_trial(rule, "tiny", 0)
    setup = trial.testbed.set_up(trial)
    strategy: Any = setup.strategy
    found, inner = [], strategy.allocator.rule

    def seeing(forecast: Forecast, *sizes: int) -> AllocationProblem:
        found.append(None if forecast.kept_P is None else forecast.kept_P.tolist())
        return inner(forecast, *sizes)

    strategy.allocator.rule = seeing
    wrapped: Any = setup.environment
    environment: LanguageModelEnvironment = wrapped.environment
    offered = iter([environment.prompt_ids[:8], environment.prompt_ids[4:12]])
    for step, text in enumerate(("1" + "0" * 15, "0" * 16)):
        policy.script = dict.fromkeys(range(64), text)
        result = run_step(strategy, StepSpec(step, 8, 32, lambda count: next(offered)[:count]), environment.generate)
        setup.environment.train(result.batch)
    return found, environment


@pytest.mark.parametrize("rule", ["beta", "calibrated", "oracle"])
def test_the_rule_knows_what_is_kept_if_it_is_priced(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, environment = told(f"{rule}@priced", monkeypatch)
    assert found == [[False] * 8, [True] * 4 + [False] * 4]
    assert environment.replaced == 4
    found, environment = told(f"{rule}@kept", monkeypatch)
    assert found == [None, None]
    assert environment.replaced == 4
    found, environment = told(rule, monkeypatch)
    assert found == [None, None]
    assert environment.replaced == 0


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ("kept", Loss(kept="successes")),
        ("priced", Loss(kept="successes")),
        ("kept@ratio", Loss(kept="successes", ratio=True)),
        ("kept-failures", Loss(kept="failures")),
    ],
)
def test_the_loss_of_a_trial_is_that_of_its_options(options: str, loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    _, environment = told(f"beta@{options}", monkeypatch)
    assert environment.loss == split_rule(f"beta@{options}")[1].loss == loss
