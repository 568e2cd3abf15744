"""A simulated policy: rollouts are sampled from hidden success rates, and training on them changes the rates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from knapsack_arena.simulator.counter_rng import normals, uniforms
from knapsack_arena.simulator.learner import LearnerSettings, policy_gradient
from knapsack_arena.simulator.population import Population
from knapsack_arena.strategies import Batch, RolloutRequest
from knapsack_rl.beliefs.online_logistic import logistic
from knapsack_rl.notation import FloatArray, IntArray
from knapsack_rl.outcomes import Outcomes

# Streams of random numbers, by use.
_SUCCESS, _LENGTH, _ORDER, _WALK = 0, 1, 3, 4


class Simulation:
    """A training run on a population; equal arguments and equal calls give equal results.

    Attributes:
        population: the prompts.
        step: training steps done.
    """

    def __init__(self, population: Population, *, seed: int, settings: LearnerSettings | None = None) -> None:
        """A policy before its first step.

        Args:
            population: the prompts.
            seed: of the order of prompts, of the rollouts and of the noise; at least 0.
            settings: how the policy learns.

        Raises:
            ValueError: a negative seed.
        """
        if seed < 0:
            raise ValueError(f"seed is {seed}: it must be at least 0")
        self.population, self.seed, self.step = population, seed, 0
        self.settings = LearnerSettings() if settings is None else settings
        self._row = {prompt_id: row for row, prompt_id in enumerate(population.prompt_ids)}
        self._gains_P = np.zeros(len(self._row))
        self._skills_K = np.zeros(population.loadings_PK.shape[1])
        self._power = self._power_weight = 0.0
        self._generated_P = np.zeros(len(self._row), dtype=np.int64)
        self._epoch, self._queue = 0, np.zeros(0, dtype=np.int64)

    @property
    def prompt_ids(self) -> tuple[str, ...]:
        """The prompts that can be trained on, ``[P]``."""
        return self.population.prompt_ids

    def take(self, k: int) -> tuple[str, ...]:
        """The ids of the next ``k`` prompts, all different: every prompt once an epoch, in an order of the epoch.

        Raises:
            ValueError: more prompts than there are, or fewer than one.
        """
        if not 1 <= k <= len(self._row):
            raise ValueError(f"asked for {k} different prompts of {len(self._row)}: take between 1 and all of them")
        if self._queue.size < k:
            order = np.random.default_rng([self.seed, _ORDER, self._epoch]).permutation(len(self._row))
            waiting = np.isin(order, self._queue)  # last in the new epoch, so that no call returns a prompt twice
            self._queue = np.concatenate([self._queue, order[~waiting], order[waiting]])
            self._epoch += 1
        rows, self._queue = self._queue[:k], self._queue[k:]
        return tuple([self.prompt_ids[row] for row in rows.tolist()])

    def generate(self, request: RolloutRequest) -> Outcomes:
        """Generate the rollouts of a request: rewards of 0 and 1 at the true rates, and lengths.

        Raises:
            ValueError: a prompt that is not in the population.
        """
        rows_P, population = self._rows(request.prompt_ids), self.population
        rates_P = self._rates(rows_P)
        rows_PG = np.repeat(rows_P, request.counts_P)
        first_P = np.cumsum(request.counts_P) - request.counts_P
        numbers_PG = np.arange(rows_PG.size) + np.repeat(self._generated_P[rows_P] - first_P, request.counts_P)
        self._generated_P[rows_P] += request.counts_P
        counter = (self.seed, self.step)
        successes_PG = uniforms(*counter, _SUCCESS, rows_PG, numbers_PG) < np.repeat(rates_P, request.counts_P)
        gained_P = rates_P - logistic(population.logits_P[rows_P])
        median_P = population.log_tokens_P[rows_P] - population.lengths.fall * gained_P
        spread_PG = population.lengths.spread * normals(*counter, _LENGTH, rows_PG, numbers_PG)
        lengths_PG = np.exp(np.repeat(median_P, request.counts_P) + spread_PG)
        return Outcomes(
            step=self.step,
            prompt_ids=request.prompt_ids,
            counts_P=request.counts_P,
            rewards_PG=successes_PG.astype(np.float64),
            tokens_PG=np.clip(np.rint(lengths_PG), 1, population.lengths.longest).astype(np.int64),
        )

    def train(self, batch: Batch) -> None:
        """Take one optimizer step on a batch: own and shared gains, forgetting and noise; then the next step begins.

        Raises:
            ValueError: a prompt that is not in the population.
        """
        settings, rows_P = self.settings, self._rows(batch.outcomes.prompt_ids)
        gradient_P, power = policy_gradient(batch, self._rates(rows_P), settings)
        gradient_P /= self._gradient_size(power, batch)
        self._gains_P *= 0.5 ** (1.0 / settings.forgetting)
        np.add.at(self._gains_P, rows_P, settings.own_rate * gradient_P)
        walk_K = np.random.default_rng([self.seed, _WALK, self.step]).standard_normal(self._skills_K.size)
        gained_K = gradient_P @ self.population.loadings_PK[rows_P]
        self._skills_K += settings.shared_rate * gained_K + settings.noise * walk_K
        self._generated_P[:] = 0
        self.step += 1

    def success_rates(self, prompt_ids: Sequence[str] | None = None) -> FloatArray:
        """True success rates now, of these prompts or of all, ``[P]``.

        Raises:
            ValueError: a prompt that is not in the population.
        """
        return self._rates(slice(None) if prompt_ids is None else self._rows(prompt_ids))

    def held_out_rates(self) -> FloatArray:
        """True success rates now of the prompts that share the skills but are never trained on, ``[H]``."""
        population = self.population
        return logistic(population.held_out_logits_H + population.held_out_loadings_HK @ self._skills_K)

    def _rates(self, rows: IntArray | slice) -> FloatArray:
        population = self.population
        return logistic(population.logits_P[rows] + self._gains_P[rows] + population.loadings_PK[rows] @ self._skills_K)

    def _rows(self, prompt_ids: Sequence[str]) -> IntArray:
        try:
            return np.array([self._row[prompt_id] for prompt_id in prompt_ids], dtype=np.int64)
        except KeyError as error:
            raise ValueError(f"prompt {error} is not in the population") from None

    def _gradient_size(self, power: float, batch: Batch) -> float:
        """Divisor of the gradient: its running size (adam), or its size if every advantage were +-1 (sgd)."""
        if self.settings.optimizer == "sgd":
            return float(np.sqrt(1.0 / max(int(batch.outcomes.attempts_P.sum()), 1)))
        memory = self.settings.memory
        self._power = memory * self._power + (1 - memory) * power
        self._power_weight = memory * self._power_weight + (1 - memory)
        return float(np.sqrt(max(self._power / self._power_weight, 1e-30)))
