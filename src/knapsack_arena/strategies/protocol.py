"""A strategy is a generator: it yields rollout requests, receives outcomes, and returns the training batch.

One protocol covers all rules. Those that decide before the step request once (`OneRound` makes a strategy of any
`Allocator`); those that decide within it request several times; those that choose prompts take more of them from the
sampler than they request rollouts for. `run_step` drives a strategy and counts rollouts, tokens and sequential rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np

from knapsack_rl.allocator import Allocator
from knapsack_rl.files import SavedToFile, State
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes

# What prompts look like to the policy now, from their ids.
FeatureSource: TypeAlias = Callable[[Sequence[str]], PromptFeatures]


@dataclass(frozen=True, eq=False)
class StepSpec:
    """What a strategy is given for one step.

    Attributes:
        step: generation step, from 0.
        groups: prompts that an equal division would train on.
        budget: rollouts of the step. A strategy may spend more or less where its paper does; `StepResult` counts them.
        take: the sampler: ids of the next ``k`` prompts, all different. Prompts taken but given no rollouts are skipped
            until the sampler reaches them again.
    """

    step: int
    groups: int
    budget: int
    take: Callable[[int], tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class RolloutRequest:
    """One round of generation: prompts, and the number of rollouts of each.

    Attributes:
        prompt_ids: all different, ``[P]``.
        counts_P: rollouts of each, ``[P]``, at least 0. A count of 1 is allowed: another round may add to the group.
        success_rates_P: forecast success rates, ``[P]``; None for rules without beliefs.
        pseudo_count_P: evidence behind them, in rollouts, ``[P]``; None for point estimates.

    Raises:
        ValueError: arrays of other lengths, a negative count, no rollouts at all, or an id that occurs twice.
    """

    prompt_ids: tuple[str, ...]
    counts_P: IntArray
    success_rates_P: FloatArray | None = None
    pseudo_count_P: FloatArray | None = None

    def __post_init__(self) -> None:
        for array in (self.counts_P, self.success_rates_P, self.pseudo_count_P):
            if array is not None and array.shape != (len(self.prompt_ids),):
                raise ValueError(f"a request for {len(self.prompt_ids)} prompts has an array of shape {array.shape}")
        if (self.counts_P < 0).any() or not self.counts_P.any():
            raise ValueError(f"a request needs some rollouts, and no fewer than 0 of a prompt: {self.counts_P}")
        if len(set(self.prompt_ids)) != len(self.prompt_ids):
            raise ValueError("a request names a prompt twice: add its counts up")


@dataclass(frozen=True, eq=False)
class Batch:
    """What the optimizer step trains on.

    Attributes:
        outcomes: the rollouts trained on, group after group: some of those generated, possibly some kept from earlier.
        baseline_P, scale_P: mean and standard deviation that normalise each group's rewards, ``[P]``; by default those
            of the rollouts trained on. They differ where only some rollouts of a group are trained on, and all of them
            enter the statistics.
    """

    outcomes: Outcomes
    baseline_P: FloatArray | None = None
    scale_P: FloatArray | None = None


# Yields requests, is sent their outcomes (same prompts, same order), and returns what to train on.
StepGenerator: TypeAlias = Generator[RolloutRequest, Outcomes, Batch]


class Strategy(Protocol):
    """Decides, within a step, which prompts get how many rollouts, and which rollouts are trained on."""

    def step(self, spec: StepSpec) -> StepGenerator:
        """Yield the requests of one step, learn from the outcomes that are sent, and return the training batch."""
        ...

    def state_dict(self) -> State:
        """Everything learned, between steps, as arrays and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on a failure nothing changes."""
        ...


def take_unseen(spec: StepSpec, k: int, met: Collection[str] = (), patience: int = 1) -> tuple[str, ...]:
    """Take up to ``k`` prompts from the sampler, without those in ``met`` and without repetitions; possibly none.

    Examines at most ``patience * k`` prompts, ``spec.groups`` per call; the sampler must always be able to supply that
    many.
    """
    found: dict[str, None] = {}
    examined = 0
    while len(found) < k and examined < patience * k:
        size = min(spec.groups, k - len(found), patience * k - examined)
        found.update(dict.fromkeys([prompt_id for prompt_id in spec.take(size) if prompt_id not in met]))
        examined += size
    return tuple(found)


class OneRound(SavedToFile):
    """A strategy that plans once and trains on all rollouts: any allocator."""

    def __init__(self, allocator: Allocator, pool: int = 1, features: FeatureSource | None = None) -> None:
        """A strategy of this allocator.

        Args:
            allocator: divides the budget.
            pool: prompts offered for each of the ``groups``; beyond 1 the allocator must be allowed to plan 0.
            features: what prompts look like, called once a step with those offered and given to ``allocator.plan``;
                None to plan without features.

        Raises:
            ValueError: a pool below 1.
        """
        if pool < 1:
            raise ValueError(f"pool is {pool}: at least as many prompts as groups must be offered, use 1 or more")
        self.allocator, self.pool, self.features = allocator, pool, features

    def step(self, spec: StepSpec) -> StepGenerator:
        """Plan, generate, learn, and train on all of it."""
        prompt_ids = take_unseen(spec, spec.groups * self.pool)
        given: dict[str, Any] = {} if self.features is None else {"features": self.features(prompt_ids)}
        plan = self.allocator.plan(prompt_ids, spec.budget, spec.step, **given)
        chosen = np.flatnonzero(plan.counts_P)
        ids = tuple([plan.prompt_ids[i] for i in chosen.tolist()])
        outcomes = yield RolloutRequest(
            ids, plan.counts_P[chosen], plan.success_rates_P[chosen], plan.pseudo_count_P[chosen]
        )
        features = None if plan.features is None else plan.features.take(chosen)
        self.allocator.observe(replace(outcomes, features=features))
        return Batch(outcomes)

    def state_dict(self) -> State:
        """The state of the allocator."""
        return self.allocator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the allocator's state; on a failure nothing changes.

        Raises:
            BeliefFileError: state of another rule, or damaged.
        """
        self.allocator.load_state_dict(state)


@dataclass(frozen=True, eq=False)
class StepResult:
    """A step that was run.

    Attributes:
        batch: what is trained on.
        rounds: each request with its outcomes, in order.
    """

    batch: Batch
    rounds: tuple[tuple[RolloutRequest, Outcomes], ...]

    @cached_property
    def rollouts(self) -> int:
        """Rollouts generated, whether they are trained on or not."""
        return sum(int(outcomes.counts_P.sum()) for _, outcomes in self.rounds)

    @cached_property
    def tokens(self) -> int:
        """Tokens generated; 0 where lengths are not known."""
        return sum(int(outcomes.tokens_PG.sum()) for _, outcomes in self.rounds if outcomes.tokens_PG is not None)


def run_step(strategy: Strategy, spec: StepSpec, generate: Callable[[RolloutRequest], Outcomes]) -> StepResult:
    """Run one step of a strategy.

    Args:
        strategy: the rule.
        spec: the step.
        generate: makes and scores the rollouts of a request; returns outcomes of the same prompts in the same order.

    Raises:
        ValueError: outcomes of other prompts than were requested, or a strategy that requests no rollouts.
    """
    steps = strategy.step(spec)
    rounds: list[tuple[RolloutRequest, Outcomes]] = []
    try:
        request = next(steps)
        while True:
            outcomes = generate(request)
            if outcomes.prompt_ids != request.prompt_ids:
                raise ValueError("the outcomes are of other prompts than were requested")
            rounds.append((request, outcomes))
            request = steps.send(outcomes)
    except StopIteration as done:
        if not rounds:
            raise ValueError(f"{type(strategy).__name__} requested no rollouts in step {spec.step}") from None
        return StepResult(done.value, tuple(rounds))
