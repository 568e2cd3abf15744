"""A small language model as an environment for rules: the simulator's interface, with a real policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np
import torch

from knapsack_arena.lab.policy import Policy, PolicyLike, Tokens
from knapsack_arena.lab.regimes import Regime
from knapsack_arena.lab.wide_policy import WidePolicy
from knapsack_arena.strategies import Batch, RolloutRequest
from knapsack_rl.advantages import EPSILON, group_statistics, prompt_weights
from knapsack_rl.beliefs.looks import Looks, log_odds
from knapsack_rl.features.text import TextFeatures
from knapsack_rl.kept import KeptSuccesses, failed_rollouts
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes

# Optimizer steps after which a rollout that was not trained on is dropped.
KEPT_STEPS: Final = 8

# What tells prompts apart, beside the present confidence: the policy's hidden states at their first look, those of the
# base model before the first step, as a file of features holds them, or features of their texts.
LookName: TypeAlias = Literal["policy", "base", "texts", "odds"]


@dataclass(frozen=True)
class Loss:
    """How rollouts become an update.

    Attributes:
        weighting: whether every rollout weighs the same (the paper's code), or every prompt.
        scale: whether advantages are divided by the group's standard deviation, by its mean (MaxRL, arXiv 2602.02710),
            or by nothing.
        kept: what replaces a rollout of a group whose rewards are all equal: of a group of failures the prompt's last
            success, or (a control) of a group of successes its last failure; or nothing.
        ratio: whether the advantage of such a rollout is multiplied by its truncated importance ratio, at most 1.
    """

    weighting: Literal["rollout", "prompt"] = "rollout"
    scale: Literal["deviation", "mean"] | None = "deviation"
    kept: Literal["successes", "failures"] | None = None
    ratio: bool = False


class LanguageModelEnvironment:
    """A regime's policy under training.

    Attributes:
        prompt_ids: of all training prompts.
        step: optimizer steps done.
        kept: rollouts that may replace one of a group without a gradient; empty where the loss keeps none.
        replaced: rollouts replaced so far.
    """

    def __init__(
        self,
        regime: Regime,
        seed: int,
        loss: Loss | None = None,
        policy: PolicyLike | None = None,
        look: LookName = "policy",
    ) -> None:
        """The base model of a regime before its first step, or ``policy``, whose prompts are the regime's.

        ``look`` says what tells prompts apart; ``seed`` determines prompt order and all sampling.
        """
        self.regime, self.seed, self.loss = regime, seed, loss or Loss()
        items = [*regime.train, *regime.heldout]
        kind = WidePolicy if regime.pretrained else Policy
        self.policy: PolicyLike = policy or kind(
            regime.base_model(),
            [item.prompt for item in items],
            [item.answer for item in items],
            regime.learning_rate,
            regime.longest,
            regime.verify,
            regime.samples,
        )
        self.prompt_ids = tuple(item.prompt for item in regime.train)
        self.step = self.replaced = 0
        self.kept = KeptSuccesses()
        self._looks, self._look = Looks(), look
        # Prompts may be held out and trained on, where nothing transfers.
        self._row = {item.prompt: row for row, item in reversed(list(enumerate(items)))}
        self._heldout = range(len(regime.train), len(items))
        if look == "base":
            self._looks.remember(self.prompt_ids, self.policy.hidden_states(range(len(self.prompt_ids)))[:, :-1])
        self._epoch, self._order = 0, np.empty(0, dtype=np.int64)
        self._rounds = 0
        # Rollouts that were not trained on yet, by prompt and reward, each with its step. Rollouts of the same prompt
        # and reward are exchangeable, so a batch that names both takes any of them.
        self._untrained: dict[tuple[int, float], list[tuple[int, Tokens]]] = defaultdict(list)

    def take(self, count: int) -> tuple[str, ...]:
        """The next prompts of the seeded order, all different; each epoch has another order.

        Raises:
            ValueError: more prompts than there are.
        """
        if count > len(self.prompt_ids):
            raise ValueError(f"{count} prompts were asked for, there are {len(self.prompt_ids)}: use a smaller pool")
        taken = self._order[:count]
        self._order = self._order[count:]
        if len(taken) < count:
            order = np.random.default_rng([self.seed, self._epoch]).permutation(len(self.prompt_ids))
            self._epoch += 1
            unseen = ~np.isin(order, taken)
            more = order[unseen][: count - len(taken)]
            self._order = order[~np.isin(order, more)]
            taken = np.concatenate([taken, more])
        return tuple(self.prompt_ids[row] for row in taken)

    def generate(self, request: RolloutRequest) -> Outcomes:
        """Sample and score a round of rollouts."""
        chosen = np.flatnonzero(request.counts_P)
        which = [self._row[request.prompt_ids[i]] for i in chosen]
        generator = torch.Generator().manual_seed(int(np.random.default_rng([self.seed, self._rounds]).integers(2**62)))
        self._rounds += 1
        answers = self.policy.sample(which, request.counts_P[chosen].tolist(), generator)
        rows = np.repeat(which, request.counts_P[chosen])
        rewards = [float(self.policy.right(row, tokens)) for row, tokens in zip(rows.tolist(), answers, strict=True)]
        for row, reward, tokens in zip(rows.tolist(), rewards, answers, strict=True):
            self._untrained[row, reward].append((self.step, tokens))
        self._keep(rows.tolist(), rewards, answers)
        lengths = np.array([len(tokens) for tokens in answers], dtype=np.int64)
        return Outcomes(self.step, request.prompt_ids, request.counts_P, np.array(rewards), lengths)

    def train(self, batch: Batch) -> None:
        """Take one optimizer step on a batch."""
        outcomes = batch.outcomes
        rows = np.array([self._row[prompt_id] for prompt_id in outcomes.prompt_ids])[outcomes.group_PG]
        pairs = zip(rows.tolist(), outcomes.rewards_PG.tolist(), strict=True)
        answers = [self._untrained[pair].pop()[1] for pair in pairs]
        weights_PG = np.ones(len(answers))
        if self.loss.kept is not None and batch.baseline_P is None:
            batch = self._with_kept(batch, answers, weights_PG)
        advantages_PG = torch.tensor(self._advantages(batch, answers) * weights_PG, dtype=torch.float32)
        self.policy.learn(rows.tolist(), answers, advantages_PG)
        self.step += 1
        for key, kept in list(self._untrained.items()):
            self._untrained[key] = [(step, tokens) for step, tokens in kept if step > self.step - KEPT_STEPS]
            if not self._untrained[key]:
                del self._untrained[key]

    def success_rates(self, prompt_ids: Sequence[str] | None = None) -> FloatArray:
        """True success rates now, of all training prompts by default; ``[P]``."""
        which = range(len(self.prompt_ids)) if prompt_ids is None else [self._row[i] for i in prompt_ids]
        return self.policy.success_rates(which)

    def held_out_rates(self) -> FloatArray:
        """True success rates of the held-out prompts, ``[P]``."""
        return self.policy.success_rates(self._heldout)

    def hidden_states(self, prompt_ids: Sequence[str]) -> PromptFeatures:
        """Look at prompts: what tells them apart, by default as TRL's adapter has it, and the present confidence."""
        found = self.policy.hidden_states([self._row[prompt_id] for prompt_id in prompt_ids])

        def describe(rows: IntArray) -> FloatArray:
            if self._look == "texts":
                return TextFeatures()([prompt_ids[row] for row in rows.tolist()]).features_P_F
            return found[rows, :-1]

        return self._looks(prompt_ids, log_odds(found[:, -1]), None if self._look == "odds" else describe)

    def _keep(self, rows: Sequence[int], rewards: Sequence[float], answers: Sequence[Tokens]) -> None:
        """Keep the last success (or, for the control, failure) of each prompt of a round."""
        if self.loss.kept is None:
            return
        wanted = 1.0 if self.loss.kept == "successes" else 0.0
        last = {row: answer for row, reward, answer in zip(rows, rewards, answers, strict=True) if reward == wanted}
        log_probs = [np.zeros(len(answer)) for answer in last.values()]
        if self.loss.ratio:
            log_probs = self.policy.log_probs(list(last), list(last.values()))
        for (row, answer), each in zip(last.items(), log_probs, strict=True):
            self.kept.keep(self.prompt_ids[row], self.step, answer, each)

    def _with_kept(self, batch: Batch, answers: list[Tokens], weights_PG: FloatArray) -> Batch:
        """The batch with kept rollouts in groups that have no gradient; ``answers`` and weights change in place."""
        outcomes, wanted = batch.outcomes, 1.0 if self.loss.kept == "successes" else 0.0
        last_P = failed_rollouts(outcomes.group_PG, outcomes.rewards_PG == wanted, len(outcomes.prompt_ids))
        rewards_PG = outcomes.rewards_PG.copy()
        for i in np.flatnonzero(last_P >= 0).tolist():
            found, at = self.kept.find(outcomes.prompt_ids[i], self.step), int(last_P[i])
            if found is None:
                continue
            rewards_PG[at], answers[at] = wanted, found.tokens_T.tolist()
            if self.loss.ratio:
                now = self.policy.log_probs([self._row[outcomes.prompt_ids[i]]], [answers[at]])[0]
                weights_PG[at] = found.weight(float(now.sum()))
            self.replaced += 1
        return replace(batch, outcomes=replace(outcomes, rewards_PG=rewards_PG))

    def _advantages(self, batch: Batch, answers: Sequence[Tokens]) -> FloatArray:
        """GRPO's advantages of all rollouts of a batch, weighted as the loss requires; ``[PG]``.

        The answers are there for environments whose loss depends on them.
        """
        outcomes, group_PG = batch.outcomes, batch.outcomes.group_PG
        found = group_statistics(group_PG, outcomes.rewards_PG, len(outcomes.prompt_ids))
        baseline_P = found.mean_P if batch.baseline_P is None else batch.baseline_P
        scale_P = found.deviation_P if batch.scale_P is None else batch.scale_P
        advantages_PG: FloatArray = outcomes.rewards_PG - baseline_P[group_PG]
        if self.loss.scale == "mean":
            scale_P = baseline_P
        if self.loss.scale is not None:
            advantages_PG = advantages_PG / (scale_P[group_PG] + EPSILON)
        if self.loss.weighting == "prompt":
            advantages_PG = advantages_PG * prompt_weights(outcomes.counts_P)[group_PG]
        return advantages_PG
