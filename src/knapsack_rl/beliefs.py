"""What we believe about each prompt's success rate, and how outcomes change it.

`PosteriorBeliefs` is ours: a Beta belief per prompt whose evidence fades, because the policy moves. `PaperBeliefs` is
the estimator of the paper's authors. Anything else that can forecast a success rate with a weight of evidence (a probe
of the policy, an external embedding) fits the same protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from knapsack_rl.notation import BoolArray, FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.table import PromptTable

# Passes over the data after which an observation should count half, where the length of a pass is known: on the main
# job one, four and more passes end alike, and longer memory finds more mixed groups (docs/log.md).
FADING_PASSES = 4


@dataclass(frozen=True, eq=False)
class Forecast:
    """What is believed about some prompts before a step.

    Attributes:
        success_rates_P: expected success rates, ``[P]``, in [0, 1].
        strength_P: weight of evidence in rollouts; the belief is Beta(rate * strength, (1-rate) * strength), ``[P]``.
        seen_P: whether there is any evidence that the rule in use counts, ``[P]``.
        tokens_P: expected completion length in tokens, NaN where unknown, ``[P]``.
        idle_P: steps since the prompt was last observed, or since step 0 if it never was, ``[P]``. None where nobody
            counts them; such a prompt is never overdue.
    """

    success_rates_P: FloatArray
    strength_P: FloatArray
    seen_P: BoolArray
    tokens_P: FloatArray
    idle_P: IntArray | None = None

    @property
    def alpha_P(self) -> FloatArray:
        """First parameter of the Beta beliefs, ``[P]``."""
        return self.success_rates_P * self.strength_P

    @property
    def beta_P(self) -> FloatArray:
        """Second parameter of the Beta beliefs, ``[P]``."""
        return self.strength_P - self.alpha_P


class Beliefs(Protocol):
    """A forecaster of success rates that learns from outcomes."""

    def forecast(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        """What to expect of these prompts at a step. Changes nothing."""
        ...

    def observe(self, outcomes: Outcomes) -> None:
        """Learn from outcomes: of this step or of an earlier one, of whole groups or of parts."""
        ...

    def save(self, path: Path) -> None:
        """Write everything learned to a file, all or nothing."""
        ...

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; on a failure nothing changes."""
        ...


class PosteriorBeliefs:
    """Beta beliefs with forgetting: an observation counts half after every ``half_life`` steps.

    Because fading depends on time alone, the order in which outcomes arrive does not matter: late ones, and groups that
    come in parts, leave the same belief (up to rounding in single precision). Only the mean length follows the order of
    arrival.

    Memory: 24 bytes a prompt and 5 to 13 for the index, plus an eighth to grow.
    """

    COLUMNS: Mapping[str, DTypeLike] = {
        "successes": np.float32,
        "failures": np.float32,
        "tokens": np.float32,
        "step": np.int32,
    }

    def __init__(self, half_life: float = 64.0, prior: tuple[float, float] = (0.5, 0.5)) -> None:
        """Beliefs without evidence.

        Args:
            half_life: steps after which an observation counts half; 64 is about an epoch of the paper's runs.
            prior: successes and failures credited to every prompt; the default is Jeffreys' prior.

        Raises:
            ValueError: a half-life or prior that is not positive and finite.
        """
        for name, value in (("half_life", half_life), ("prior", prior[0]), ("prior", prior[1])):
            if not (0 < value < float("inf")):
                raise ValueError(f"{name} is {value}: it must be positive and finite")
        self.half_life, self.prior = float(half_life), prior
        self.table = PromptTable(self.COLUMNS)

    def forecast(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        """What to expect of these prompts at a step."""
        rows = self.table.rows(prompt_ids)
        seen = rows >= 0
        known = rows[seen]
        faded = self._fading(step - self.table["step"][known])
        counts = np.zeros((2, rows.size))
        counts[0, seen] = self.table["successes"][known] * faded
        counts[1, seen] = self.table["failures"][known] * faded
        alpha, beta = counts[0] + self.prior[0], counts[1] + self.prior[1]
        idle = _idle(self.table, rows, step)
        return Forecast(alpha / (alpha + beta), alpha + beta, seen, _known_tokens(self.table, rows), idle)

    def observe(self, outcomes: Outcomes) -> None:
        """Add the successes and failures of each group, faded to the latest step the prompt was seen in."""
        answered = np.flatnonzero(outcomes.attempts_P)
        if not answered.size:
            return
        ids = [outcomes.prompt_ids[i] for i in answered]
        rows, groups = np.unique(self.table.add(ids), return_inverse=True)
        table = self.table
        last = table["step"][rows]  # 0 for a new prompt, which has nothing to fade
        latest = np.maximum(last, outcomes.step)
        old, new = self._fading(latest - last), self._fading(latest - outcomes.step)
        successes = outcomes.successes_P[answered]
        for name, counts in (("successes", successes), ("failures", outcomes.attempts_P[answered] - successes)):
            table[name][rows] = table[name][rows] * old + np.bincount(groups, weights=counts) * new
        _observe_tokens(table, rows, groups, outcomes.mean_tokens_P[answered])
        table["step"][rows] = latest

    def save(self, path: Path) -> None:
        """Write everything learned to a file, all or nothing."""
        self.table.save(path, {"kind": "posterior", "half_life": self.half_life, "prior": list(self.prior)})

    def load(self, path: Path) -> None:
        """Take up what `save` wrote; the half-life and the prior stay those of this object.

        Raises:
            BeliefFileError: the file is missing, damaged, of a later version, or of another kind.
        """
        self.table.load(path, {"kind": "posterior"})

    def _fading(self, steps: IntArray) -> FloatArray:
        return np.exp2(-np.maximum(steps, 0) / self.half_life)


class PaperBeliefs:
    """The estimator of the paper's authors (their ``rl_dataset.py``; docs/beliefs.md lists what is repaired).

    The rate is the mean of the latest visit if that had at least ``window`` rollouts, else the mean of the last
    ``window`` rewards over all visits. With fewer than ``min_rewards`` rewards a prompt counts as unseen. There is no
    decay and no prior; unseen prompts are forecast 0.5 with no evidence.

    A window of the last rewards is kept as bits, so late outcomes enter in the order in which they arrive.
    """

    COLUMNS = {  # noqa: RUF012  a constant
        "rate": np.float32,
        "tokens": np.float32,
        "window": np.uint64,
        "rewards": np.int32,
        "step": np.int32,
    }

    def __init__(self, window: int = 16, min_rewards: int = 8) -> None:
        """Beliefs without evidence; the defaults are the authors' ``reward_buffer_length`` and ``min_buffer_length``.

        Raises:
            ValueError: a window outside 1..64 rewards.
        """
        if not 1 <= window <= 64:
            raise ValueError(f"window is {window}: from 1 to 64 rewards can be kept")
        self.window, self.min_rewards = window, min_rewards
        self.table = PromptTable(self.COLUMNS)

    def forecast(self, prompt_ids: Sequence[str], step: int) -> Forecast:
        """The latest estimate of each prompt; its age changes nothing but ``idle_P``."""
        rows = self.table.rows(prompt_ids)
        rewards, rates = np.zeros(rows.size), np.full(rows.size, 0.5)
        known = rows >= 0
        rewards[known] = self.table["rewards"][rows[known]]
        seen = rewards >= max(self.min_rewards, 1)
        rates[seen] = self.table["rate"][rows[seen]]
        return Forecast(rates, rewards, seen, _known_tokens(self.table, rows), _idle(self.table, rows, step))

    def observe(self, outcomes: Outcomes) -> None:
        """Shift each group's rewards into its window and estimate anew."""
        answered = np.flatnonzero(outcomes.attempts_P)
        if not answered.size:
            return
        table = self.table
        rows, groups = np.unique(table.add([outcomes.prompt_ids[i] for i in answered]), return_inverse=True)
        to_group = np.full(len(outcomes.prompt_ids), -1)
        to_group[answered] = groups
        group_G = to_group[outcomes.group_PG[outcomes.answered_PG]]
        success_G = outcomes.success_PG[outcomes.answered_PG]
        got = np.bincount(group_G, minlength=rows.size)
        table["window"][rows] = self._shifted(table["window"][rows], group_G, success_G, got)
        table["rewards"][rows] = np.minimum(table["rewards"][rows].astype(np.int64) + got, np.iinfo(np.int32).max)
        kept = np.minimum(table["rewards"][rows], self.window)
        of_window = np.bitwise_count(table["window"][rows]) / kept
        of_visit = np.bincount(group_G, weights=success_G, minlength=rows.size) / got
        table["rate"][rows] = np.where(got >= self.window, of_visit, of_window)
        table["step"][rows] = np.maximum(table["step"][rows], outcomes.step)
        _observe_tokens(table, rows, groups, outcomes.mean_tokens_P[answered])

    def save(self, path: Path) -> None:
        """Write everything learned to a file, all or nothing."""
        self.table.save(path, {"kind": "paper", "window": self.window})

    def load(self, path: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            BeliefFileError: the file is missing, damaged, of a later version, of another kind or another window.
        """
        self.table.load(path, {"kind": "paper", "window": self.window})

    def _shifted(self, window: np.ndarray, group_G: IntArray, success_G: BoolArray, got: IntArray) -> np.ndarray:
        """The windows after each group's rewards were pushed in, the newest in bit 0."""
        order = np.argsort(group_G, kind="stable")
        position = np.empty_like(group_G)
        position[order] = np.repeat(np.cumsum(got), got) - 1 - np.arange(group_G.size)  # 0 for a group's last reward
        fits = (position < self.window) & success_G
        pushed = np.zeros_like(window)
        np.bitwise_or.at(pushed, group_G[fits], np.uint64(1) << position[fits].astype(np.uint64))
        kept = got < self.window  # a shift by the whole width is not defined
        shift = np.where(kept, got, 0).astype(np.uint64)
        mask = np.uint64(2**self.window - 1)
        shifted: np.ndarray = (np.where(kept, window << shift, 0).astype(np.uint64) | pushed) & mask
        return shifted


def _observe_tokens(table: PromptTable, rows: IntArray, groups: IntArray, tokens: FloatArray) -> None:
    """Halfway from the mean length known so far to this visit's; this visit's where none is known (stored as 0)."""
    known = ~np.isnan(tokens)
    heard = np.bincount(groups[known], minlength=rows.size)
    now = np.bincount(groups[known], weights=tokens[known], minlength=rows.size) / np.maximum(heard, 1)
    old = table["tokens"][rows]
    mean = np.where(old > 0, (old + now) / 2, now)
    table["tokens"][rows] = np.where(heard > 0, mean, old)


def _idle(table: PromptTable, rows: IntArray, step: int) -> IntArray:
    """Steps since each prompt was last observed, since step 0 where it never was; ``[P]``."""
    last = np.zeros(rows.size, dtype=np.int64)
    last[rows >= 0] = table["step"][rows[rows >= 0]]
    idle: IntArray = np.maximum(step - last, 0)
    return idle


def _known_tokens(table: PromptTable, rows: IntArray) -> FloatArray:
    """Expected completion lengths, NaN where none is known."""
    tokens = np.full(rows.size, np.nan)
    stored = table["tokens"][rows[rows >= 0]]
    tokens[rows >= 0] = np.where(stored > 0, stored, np.nan)
    return tokens
