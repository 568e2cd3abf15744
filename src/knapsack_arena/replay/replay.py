"""Replays every rule on the same record, step by step: each plans before it sees the step's outcomes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from knapsack_arena.registry import RuleContext
from knapsack_arena.replay.metrics import ReplayedStep, StepMetrics, measure_step, plan_agreement
from knapsack_arena.replay.rollouts import (
    PassSampler,
    RecordedPrompts,
    RecordedRollouts,
    RecordedStep,
    RecordExhaustedError,
    WithoutReplacementSampler,
    shuffled_rollouts,
)
from knapsack_arena.strategies import RolloutRequest, StepResult, StepSpec, Strategy, run_step
from knapsack_rl.console.failures import place_in_own_file
from knapsack_rl.notation import IntArray
from knapsack_rl.outcomes import Outcomes, is_success

# Name of the line that holds the recorded plans themselves.
RECORDED = "(recorded)"
# Far beyond any published rule; stops a rule that requests rollouts in an endless loop.
MAX_ROUNDS = 1000
# Different rewards that are kept to see whether a new threshold divides them otherwise: it is found among fewer.
MOST_REWARDS = 10_000

# Name of the rule, step, metrics.
StepRow: TypeAlias = tuple[str, int, StepMetrics]


class StepReplay:
    """Replays one step of one rule; raises when the record cannot supply a request.

    Args:
        sampler: the recorded rollouts not yet drawn by this rule.
        step: the step.
        take: the prompt sampler: returns the ids of the next ``k`` prompts.

    Attributes:
        before_learning: called once, between the rule's plan and what it learns.
    """

    def __init__(self, sampler: WithoutReplacementSampler, step: int, take: Callable[[int], tuple[str, ...]]) -> None:
        self.sampler, self.step, self.take = sampler, step, take
        self.before_learning: Callable[[], None] | None = None
        self._rounds = 0
        # Position of each prompt that was taken or drawn -> its rollouts drawn before this step.
        self._before: dict[int, int] = {}

    def run(self, strategy: Strategy, groups: int, budget: int) -> ReplayedStep:
        """Run the step of a strategy on recorded rollouts.

        Raises:
            RecordExhaustedError: it requests what the record does not hold.
            ValueError: the rule cannot plan the step.
        """
        return self._replayed(run_step(strategy, StepSpec(self.step, groups, budget, self._take), self._generate))

    def _take(self, k: int) -> tuple[str, ...]:
        prompt_ids = self.take(k)
        self._note(self.sampler.rollouts.rows(prompt_ids))
        return prompt_ids

    def _generate(self, request: RolloutRequest) -> Outcomes:
        rows = self.sampler.rollouts.rows(request.prompt_ids)
        if (rows < 0).any():
            unknown = request.prompt_ids[int(np.argmax(rows < 0))]
            raise RecordExhaustedError(f"it requests rollouts of prompt {unknown!r}, which has none in the record")
        if self.before_learning is not None and not self._rounds:
            self.before_learning()
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise RecordExhaustedError(f"it requested rollouts {MAX_ROUNDS:,} times in one step")
        self._note(rows)
        return self.sampler.draw(self.step, rows, request.counts_P)

    def _note(self, rows: IntArray) -> None:
        for row, drawn in zip(rows.tolist(), self.sampler.drawn_P[rows].tolist(), strict=True):
            self._before.setdefault(row, drawn)

    def _replayed(self, result: StepResult) -> ReplayedStep:
        rollouts = self.sampler.rollouts
        prompts = np.fromiter(self._before, dtype=np.int64)
        before_P = np.fromiter(self._before.values(), dtype=np.int64)
        available = rollouts.outcomes(self.step, prompts, before_P, rollouts.sizes_P[prompts] - before_P)
        place = {prompt_id: i for i, prompt_id in enumerate(available.prompt_ids)}
        requested_P = np.zeros(prompts.size, dtype=np.int64)
        rates_P, pseudo_count_P = np.full((2, prompts.size), np.nan)
        for request, _ in reversed(result.rounds):  # the first forecast of a prompt is written last and stays
            at = np.array([place[prompt_id] for prompt_id in request.prompt_ids])
            requested_P[at] += request.counts_P
            if request.success_rates_P is not None:
                rates_P[at] = request.success_rates_P
                pseudo_count_P[at] = np.inf if request.pseudo_count_P is None else request.pseudo_count_P
        drawn = rollouts.outcomes(self.step, prompts, before_P, self.sampler.drawn_P[prompts] - before_P)
        trained = int(result.batch.outcomes.counts_P.sum())
        return ReplayedStep(available, requested_P, drawn, rates_P, pseudo_count_P, len(result.rounds), trained)


@dataclass(eq=False)
class ReplayedRule:
    """A rule that is replayed.

    Attributes:
        name: as given on the command line.
        strategy: the rule; it learns from each step.
        stopped_reason: why its replay ended early; None while it runs.
    """

    name: str
    strategy: Strategy
    stopped_reason: str | None = None

    def try_step(self, step: StepReplay, groups: int, budget: int) -> ReplayedStep | None:
        """Replay one step; on a failure set ``stopped_reason`` and return None, so that other rules can continue."""
        try:
            return step.run(self.strategy, groups, budget)
        except Exception as error:
            place = place_in_own_file(error)
            if place is None and not isinstance(error, ValueError):
                raise  # a defect of ours
            told = str(error) if place is None else f"{place} failed: {type(error).__name__}: {error}"
            self.stopped_reason = f"stopped at step {step.step}: {told}"
            return None


def replay_steps(steps: Iterable[RecordedStep], rules: Sequence[ReplayedRule], seed: int) -> Iterator[StepRow]:
    """Replay recorded steps: each rule gets the step's prompts and budget, and draws from the step's rollouts.

    The recorded plan comes first in every step, under the name ``(recorded)``.

    Args:
        steps: in order; one at a time is held in memory.
        rules: each is replayed until it stops.
        seed: of the order in which each prompt's rollouts are drawn, shared by all rules.
    """
    begun = {}
    for rule in rules:
        with contextlib.suppress(Exception):  # a rule of a user's file may be unable to save itself
            begun[rule.name] = rule.strategy.state_dict()
    restarts = _Restarts()
    for recorded in steps:
        restart = restarts.at(recorded.outcomes)
        rollouts = shuffled_rollouts(recorded.outcomes, seed)
        step = recorded.outcomes.step
        planned_P = _planned(recorded, rollouts)
        yield RECORDED, step, _compared(_recorded_as_replayed(recorded, rollouts, planned_P), rollouts, planned_P)
        for rule in rules:
            if rule.stopped_reason is None:
                prompts = RecordedPrompts(rollouts.prompt_ids)
                replay = StepReplay(WithoutReplacementSampler(rollouts), step, prompts.take)
                if restart and rule.name in begun:
                    replay.before_learning = partial(rule.strategy.load_state_dict, begun[rule.name])
                replayed = rule.try_step(replay, len(rollouts.prompt_ids), recorded.budget)
                if replayed is not None:
                    yield rule.name, step, _compared(replayed, rollouts, planned_P)


class _Restarts:
    """Finds the steps at which a run forgot what it had learned: another threshold made other successes of rewards."""

    def __init__(self) -> None:
        self._threshold: float | None = None
        self._rewards = np.zeros(0)

    def at(self, outcomes: Outcomes) -> bool:
        """Whether the run forgot, before it learned these outcomes, what it had learned before."""
        threshold, before = outcomes.success_threshold, self._threshold
        forgot = before is not None and bool(
            (is_success(self._rewards, before) != is_success(self._rewards, threshold)).any()
        )
        self._threshold = threshold
        rewards = np.unique(np.concatenate([self._rewards, outcomes.rewards_PG[outcomes.answered_PG]]))
        self._rewards = rewards if rewards.size <= MOST_REWARDS else rewards[:: rewards.size - 1]
        return forgot


def replay_table(
    rollouts: RecordedRollouts, rules: Sequence[ReplayedRule], context: RuleContext, steps: int
) -> Iterator[StepRow]:
    """Replay a table without steps: seeded passes over its prompts, each skipped once its rollouts are used up.

    Every rule draws from a sampler of its own, in the same order.
    """
    samplers = {rule.name: WithoutReplacementSampler(rollouts) for rule in rules}
    prompts = {rule.name: PassSampler(samplers[rule.name], context.seed) for rule in rules}
    for step in range(steps):
        for rule in rules:
            if rule.stopped_reason is None:
                prompts[rule.name].begin_step()
                replay = StepReplay(samplers[rule.name], step, prompts[rule.name].take)
                replayed = rule.try_step(replay, context.groups, context.budget)
                if replayed is not None:
                    yield rule.name, step, measure_step(replayed)


def _planned(recorded: RecordedStep, rollouts: RecordedRollouts) -> IntArray:
    """Recorded plan by prompt, ``[P]``: the counts of a prompt that the step lists twice are added."""
    planned_P = np.zeros(len(rollouts.prompt_ids), dtype=np.int64)
    np.add.at(planned_P, rollouts.rows(recorded.outcomes.prompt_ids), recorded.planned_P)
    return planned_P


def _compared(replayed: ReplayedStep, rollouts: RecordedRollouts, planned_P: IntArray) -> StepMetrics:
    """Metrics of a step, with its agreement with the recorded plan over all prompts of the step, taken or not."""
    requested_P = np.zeros_like(planned_P)
    requested_P[rollouts.rows(replayed.available.prompt_ids)] = replayed.requested_P
    return measure_step(replayed, plan_agreement(requested_P, planned_P))


def _recorded_as_replayed(recorded: RecordedStep, rollouts: RecordedRollouts, planned_P: IntArray) -> ReplayedStep:
    """The recorded step in the form of a replayed one."""
    everything = np.arange(len(rollouts.prompt_ids))
    drawn = WithoutReplacementSampler(rollouts).remaining(recorded.outcomes.step, everything)
    first = np.full(everything.size, -1)
    rows = rollouts.rows(recorded.outcomes.prompt_ids)
    first[rows[::-1]] = np.arange(rows.size)[::-1]
    rates_P, pseudo_count_P = recorded.success_rates_P[first], recorded.pseudo_count_P[first]
    return ReplayedStep(drawn, planned_P, drawn, rates_P, pseudo_count_P, 1, int(drawn.counts_P.sum()))
