"""Fit a population to recorded outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from knapsack_arena.simulator.population import Lengths, Population, logit
from knapsack_arena.simulator.presets import HELD_OUT, make_loadings, median_lengths
from knapsack_arena.strategies.groups import pick
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.trace import Step, read_records


def fit_population(outcomes: Iterable[Outcomes], seed: int = 0, prompts: int | None = None) -> Population:
    """Fit a population to outcomes, with the same prompt ids.

    Success rates are drawn from their Beta posteriors, under the Beta prior that fits all prompts together: a prompt
    that failed 8 times of 8 need not be impossible. Lengths follow the recorded ones where there are any. Outcomes do
    not show which skills prompts share; loadings are drawn as in the presets. A trace gives
    ``step.outcomes for step in read_trace(path).steps``; pass only its first epoch for the policy at its start.

    Args:
        outcomes: outcomes of the prompts, in any number of parts.
        seed: of the random numbers.
        prompts: population size; recorded prompts are resampled equally often (+-1) under new ids. None keeps them.

    Raises:
        ValueError: no rollout with an answer, or fewer than one prompt.
    """
    record = _Record()
    for one in outcomes:
        record.add(one)
    return _fitted(record, seed, prompts)


def population_of_trace(path: Path, prompts: int, seed: int) -> Population:
    """Fit a population of this size to the first visit of each prompt in a recorded run.

    Memory holds a few numbers a prompt, independently of the size of the trace; a file that has not changed is read
    once.

    Raises:
        OSError: the file cannot be read.
        ValueError: no trace, or one that is damaged before its last line; no rollout with an answer; no prompts.
    """
    found = path.stat()
    return _fitted(_first_visits(path, found.st_size, found.st_mtime_ns), seed, prompts)


@lru_cache(maxsize=8)
def _first_visits(path: Path, size: int, changed: int) -> _Record:
    """The record of a trace; size and time of change are part of the cache key."""
    record = _Record()
    for outcomes in _recorded(path):
        new = [place for place, prompt_id in enumerate(outcomes.prompt_ids) if prompt_id not in record.row]
        record.add(pick(outcomes, np.array(new, dtype=np.int64)))
    return record


def _recorded(path: Path) -> Iterator[Outcomes]:
    """Yield the outcomes of a trace's steps, one at a time; steps that a resume superseded included."""
    for _, record in read_records(path):
        if isinstance(record, Step):
            yield record.outcomes


def _fitted(record: _Record, seed: int, prompts: int | None) -> Population:
    if not record.row:
        raise ValueError("there is no rollout with an answer to fit a population to: is the trace empty?")
    rng = np.random.default_rng(seed)
    ids, sums = tuple(record.row), np.array(record.sums)
    alpha, beta = fit_beta(*sums[:, :2].T)
    if prompts is not None:
        if prompts < 1:
            raise ValueError(f"{prompts} prompts: a population needs at least one")
        ids = tuple([f"q{row:06d}" for row in range(prompts)])
        sums = sums[np.resize(rng.permutation(len(sums)), prompts)]
    attempts_P, successes_P, tokens_P, answers_P = sums.T
    rates_P = rng.beta(alpha + successes_P, beta + attempts_P - successes_P)
    log_tokens_P = np.where(answers_P > 0, tokens_P / np.maximum(answers_P, 1), median_lengths(rates_P, rng))
    return Population(
        prompt_ids=ids,
        logits_P=logit(rates_P),
        loadings_PK=make_loadings(rates_P.size, rng),
        log_tokens_P=log_tokens_P,
        held_out_logits_H=logit(rng.beta(alpha, beta, HELD_OUT)),
        held_out_loadings_HK=make_loadings(HELD_OUT, rng),
        lengths=record.lengths(),
    )


def fit_beta(attempts_P: FloatArray | IntArray, successes_P: FloatArray | IntArray) -> tuple[float, float]:
    """The Beta distribution of success rates behind observed ones, by the method of moments.

    With mean m and variance v of the true rates, the observed ones vary by ``v + (m (1-m) - v) E[1/n]``.
    """
    observed_P = successes_P / attempts_P
    mean = float(np.clip(observed_P.mean(), 1e-3, 1 - 1e-3))
    most = mean * (1 - mean)  # the variance if every rate is 0 or 1
    sampling = float((1 / attempts_P).mean())
    variance = (float(observed_P.var()) - most * sampling) / max(1 - sampling, 1e-9)
    pseudo_count = most / float(np.clip(variance, 0.01 * most, 0.95 * most)) - 1
    return mean * pseudo_count, (1 - mean) * pseudo_count


@dataclass
class _Record:
    """Sums by prompt (attempts, successes, logarithms of lengths, number of lengths), and over all lengths."""

    row: dict[str, int] = field(default_factory=dict)
    sums: list[list[float]] = field(default_factory=list)
    scatter: float = 0.0
    degrees: int = 0
    longest: int = 0

    def add(self, outcomes: Outcomes) -> None:
        """Add the answered rollouts of some groups."""
        attempts_P = outcomes.attempts_P
        known_PG = outcomes.answered_PG & (outcomes.tokens_PG is not None)
        tokens_PG = np.ones(known_PG.size) if outcomes.tokens_PG is None else np.maximum(outcomes.tokens_PG, 1)
        logs_P = np.bincount(outcomes.group_PG, np.where(known_PG, np.log(tokens_PG), 0.0), attempts_P.size)
        lengths_P = np.bincount(outcomes.group_PG, known_PG, attempts_P.size)
        means_P = logs_P / np.maximum(lengths_P, 1)
        self.scatter += float(((np.log(tokens_PG) - means_P[outcomes.group_PG])[known_PG] ** 2).sum())
        self.degrees += int(np.maximum(lengths_P - 1, 0).sum())
        self.longest = max(self.longest, int(tokens_PG[known_PG].max(initial=0)))
        for prompt_id, *new in zip(
            outcomes.prompt_ids, attempts_P, outcomes.successes_P, logs_P, lengths_P, strict=True
        ):
            if new[0]:
                row = self.row.setdefault(prompt_id, len(self.sums))
                if row == len(self.sums):
                    self.sums.append([0.0] * 4)
                self.sums[row] = [old + float(value) for old, value in zip(self.sums[row], new, strict=True)]

    def lengths(self) -> Lengths:
        """The spread within groups, and the longest completion as the cut; the defaults where no length is known."""
        if not self.degrees:
            return Lengths()
        return Lengths(spread=(self.scatter / self.degrees) ** 0.5, longest=self.longest)
