"""A plan under way, and what came back of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from knapsack_rl.files import BeliefFileError, State, saved_array
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan


@dataclass(eq=False)
class OpenPlan:
    """A plan some of whose rollouts are not back.

    Attributes:
        plan: what was decided.
        texts: prompts by id, for the record.
        missing_P: rollouts that may still come, ``[P]``.
        places, rewards, tokens: of the rollouts that came: position of the prompt in the plan, reward, completion
            length (-1 where unknown).
        samples: a few completions.
        optimizer_step: optimizer steps done when the latest rollouts were made.
        learned: how many of those that came are learned.
    """

    plan: Plan
    texts: dict[str, str]
    missing_P: IntArray
    places: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    samples: list[Mapping[str, Any]] = field(default_factory=list)
    optimizer_step: int = 0
    learned: int = 0

    def outcomes(self, success_threshold: float, since: int = 0) -> Outcomes:
        """What came back after the first ``since`` rollouts; of a complete plan over all its prompts."""
        place_R = np.array(self.places[since:], dtype=np.int64)
        tokens_R = np.array(self.tokens[since:], dtype=np.int64)
        order = np.argsort(place_R, kind="stable")
        counts_P = np.bincount(place_R, minlength=len(self.plan.prompt_ids)).astype(np.int64)
        kept = np.flatnonzero(counts_P) if since or self.missing_P.any() else np.arange(counts_P.size)
        features = self.plan.features
        return Outcomes(
            step=self.plan.step,
            prompt_ids=tuple([self.plan.prompt_ids[i] for i in kept.tolist()]),
            counts_P=counts_P[kept],
            rewards_PG=np.array(self.rewards[since:], dtype=np.float64)[order],
            tokens_PG=tokens_R[order] if (tokens_R >= 0).all() else None,
            success_threshold=success_threshold,
            features=None if features is None else features.take(kept),
        )

    def state_dict(self) -> State:
        """All but the samples."""
        came = {"places": np.array(self.places, dtype=np.int64), "rewards": np.array(self.rewards, dtype=np.float64)}
        came["tokens"] = np.array(self.tokens, dtype=np.int64)
        state: State = {"plan": self.plan.state_dict(), "texts": self.texts, "missing": self.missing_P.copy()}
        return state | came | {"optimizer_step": self.optimizer_step}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> OpenPlan:
        """What `state_dict` described.

        Raises:
            BeliefFileError, KeyError, TypeError, ValueError: damaged state.
        """
        plan, texts = Plan.from_state(state["plan"]), dict(state["texts"])
        missing_P = saved_array(state, "missing", np.int64, plan.counts_P.shape)
        place_R = saved_array(state, "places", np.int64, (None,))
        reward_R = saved_array(state, "rewards", np.float64, place_R.shape, finite=False)
        token_R = saved_array(state, "tokens", np.int64, place_R.shape)
        if place_R.size and not 0 <= place_R.min() <= place_R.max() < missing_P.size:
            raise BeliefFileError("rollouts of a plan under way are of no prompt of it")
        came_P = np.bincount(place_R, minlength=missing_P.size)
        if (missing_P < 0).any() or (missing_P + came_P > plan.counts_P).any() or np.isinf(reward_R).any():
            raise BeliefFileError("a plan under way waits for other rollouts than it planned, or has infinite rewards")
        step = state.get("optimizer_step", plan.step)  # absent in earlier files
        if not isinstance(step, int) or isinstance(step, bool):
            raise BeliefFileError(f"the optimizer step of a plan under way is {step!r}")
        return cls(plan, texts, missing_P, place_R.tolist(), reward_R.tolist(), token_R.tolist(), optimizer_step=step)

    def file(
        self, place_R: IntArray, reward_R: FloatArray, token_R: IntArray, step: int, samples: list[Mapping[str, Any]]
    ) -> Callable[[], None]:
        """File rollouts that came back; returns what takes them back, as long as they are not learned."""
        before = self.missing_P.copy(), len(self.places), len(self.samples), self.optimizer_step
        np.subtract.at(self.missing_P, place_R, 1)
        self.places += place_R.tolist()
        self.rewards += reward_R.tolist()
        self.tokens += token_R.tolist()
        self.samples += samples
        self.optimizer_step = step

        def take_back() -> None:
            if self.learned <= before[1]:
                self.missing_P, self.optimizer_step = before[0], before[3]
                del self.places[before[1] :], self.rewards[before[1] :], self.tokens[before[1] :]
                del self.samples[before[2] :]

        return take_back


def check_samples(samples: Sequence[Mapping[str, Any]]) -> None:
    """Check completions for the record.

    Raises:
        ValueError: one without an id or a completion.
    """
    if not all({"id", "completion"} <= set(sample) for sample in samples):
        raise ValueError("a sample has an id and a completion: give both")


def routed(
    open_plans: Sequence[OpenPlan], step: int, ids_PG: Sequence[str]
) -> tuple[list[tuple[OpenPlan, IntArray, IntArray]], IntArray]:
    """For each open plan that waits for some of the rows: the rows and their places; and rows not waited for."""
    rows_by_id: dict[str, list[int]] = {}
    for row, prompt_id in enumerate(ids_PG):
        rows_by_id.setdefault(prompt_id, []).append(row)
    found = []
    for opened in open_plans:
        rows: list[int] = []
        places: list[int] = []
        for i, prompt_id in enumerate(opened.plan.prompt_ids if opened.plan.step == step else ()):
            arrived = rows_by_id.get(prompt_id, [])[: int(opened.missing_P[i])]
            if arrived:
                rows += arrived
                places += [i] * len(arrived)
                rows_by_id[prompt_id] = rows_by_id[prompt_id][len(arrived) :]
        if rows:
            found.append((opened, np.array(rows), np.array(places)))
    return found, np.array(sorted(row for rows in rows_by_id.values() for row in rows), dtype=np.int64)
