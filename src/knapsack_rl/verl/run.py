"""The run as verl's hooks share it, without verl: plans go out with a batch of prompts, groups come back one by one.

In verl's synchronous mode a plan's groups all come back before the next plan is made. In its asynchronous modes they
come late, in any order and in parts of several plans: beliefs take each group as it comes, by its prompt and the step
it was planned in, and a plan is recorded when its last group is back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from knapsack_rl.ids import content_id
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.session import Session
from knapsack_rl.text_features import TextFeatures


@dataclass(frozen=True)
class Group:
    """What came back for one prompt of a batch.

    Attributes:
        uid: verl's name for the group.
        prompt_id: of the prompt; empty if nothing came back.
        step: generation step the group was planned in.
        rewards: one for each rollout that came back; NaN where there was no answer.
        tokens: response lengths.
    """

    uid: str
    prompt_id: str = ""
    step: int = 0
    rewards: Sequence[float] = ()
    tokens: Sequence[int] = ()


@dataclass
class _Open:
    """A plan some of whose groups are not back yet; what is back is kept by position."""

    number: int
    plan: Plan
    texts: Mapping[str, Any]
    missing: set[int]
    back: dict[int, Group] = field(default_factory=dict)


class Run:
    """Plans, and what came of them.

    Attributes:
        session: allocator, place in the run, and trace.
    """

    def __init__(self, session: Session, success_threshold: float = 1.0, features: TextFeatures | None = None) -> None:
        """A run that shares ``session`` with nobody else; ``features`` are told of all prompts before their plan."""
        self.session, self.features = session, features
        self.success_threshold = success_threshold
        self._open: dict[str, tuple[_Open, int]] = {}
        self._plans = 0

    def plan(
        self, uids: Sequence[str], prompt_ids: Sequence[str], budget: int, step: int, texts: Sequence[Any]
    ) -> Plan:
        """Divide ``budget`` rollouts among a batch, of any size.

        Args:
            uids, prompt_ids, texts: verl's name, our id and the content of each prompt.
            budget: rollouts to divide.
            step: generation step, from 0; several batches may be planned in one.
        """
        with self.session.working():
            if self.features is not None:
                self.features.remember(prompt_ids, texts)
            plan = self.session.plan(prompt_ids, budget, step)
        self._plans += 1
        batch = _Open(self._plans, plan, dict(zip(prompt_ids, texts, strict=True)), set(range(len(uids))))
        self._open.update({uid: (batch, i) for i, uid in enumerate(uids)})
        return plan

    def order(self, uid: str) -> tuple[int, int]:
        """Plan by plan, and by place in the plan; groups that an earlier process planned come first."""
        batch, i = self._open.get(uid, (None, 0))
        return (batch.number, i) if batch else (-1, i)

    def learn(
        self, groups: Sequence[Group], optimizer_step: int, samples: Sequence[Mapping[str, Any]] = ()
    ) -> dict[str, float]:
        """Take in groups, whole, in part or empty; each ``uid`` once.

        Args:
            groups: what came back.
            optimizer_step: training steps done.
            samples: a few completions, for the record.

        Returns:
            Metrics of the plan that is now complete (of the largest, if several are), with ``rollouts_lost``, planned
            ones that did not come back, and ``lag``, training steps from plan to outcome; empty if none is.
        """
        metrics: dict[str, float] = {}
        largest = 0
        with self.session.working():
            for step in sorted({group.step for group in groups if group.rewards}):
                came = [group for group in groups if group.rewards and group.step == step]
                came.sort(key=lambda group: self.order(group.uid))
                self.session.allocator.observe(self._outcomes(step, [group.prompt_id for group in came], came))
            for batch in self._completed(groups):
                plan = batch.plan
                outcomes = self._outcomes(plan.step, plan.prompt_ids, [batch.back[i] for i in range(len(batch.back))])
                learned = self.session.learn(
                    plan,
                    outcomes,
                    optimizer_step=optimizer_step,
                    texts=batch.texts,
                    samples=samples,
                    observed=True,
                )
                if plan.budget > largest:
                    lost = plan.budget - outcomes.rewards_PG.size
                    largest, metrics = plan.budget, learned | {"rollouts_lost": lost, "lag": optimizer_step - plan.step}
        return metrics

    def _completed(self, groups: Sequence[Group]) -> list[_Open]:
        """File the groups with their plans; the plans that thereby have all of theirs."""
        touched: dict[int, _Open] = {}
        for group in groups:
            if group.uid in self._open:
                batch, i = self._open.pop(group.uid)
                batch.back[i] = group
                batch.missing.discard(i)
                touched[id(batch)] = batch
        return [batch for batch in touched.values() if not batch.missing]

    def _outcomes(self, step: int, prompt_ids: Sequence[str], groups: Sequence[Group]) -> Outcomes:
        rewards = list(zip(prompt_ids, (group.rewards for group in groups), strict=True))
        return Outcomes.of_groups(step, rewards, self.success_threshold, tokens=[group.tokens for group in groups])


def prompt_ids(by: str, indices: Sequence[Any], sources: Sequence[Any], prompts: Sequence[Any]) -> list[str]:
    """Stable ids of the rows of a batch.

    An index alone may be missing (verl then says 0) or stand for two rows (data sets laid together), so the content is
    part of the id. By content alone, copies of a prompt share one belief.

    Args:
        by: ``index`` or ``content``.
        indices, sources, prompts: of each row.

    Raises:
        ValueError: a prompt that cannot be hashed (images) and has no index of its own.
    """
    ids = []
    for index, source, prompt in zip(indices, sources, prompts, strict=True):
        try:
            content = content_id(prompt)
        except TypeError as error:
            if by == "content" or index in (None, 0):
                raise ValueError(
                    f"a prompt of {source!r} cannot be hashed ({error}): give every row its own extra_info.index, "
                    "other than 0, and set knapsack.prompt_id=index"
                ) from error
            content = "-"
        ids.append(content if by == "content" else f"{source}/{index}/{content}")
    return ids
