"""Compare value functions under each loss, on simulated policies.

    python -m benchmarks.values --worked
    python -m benchmarks.values [--preset balanced] [--seeds 3] [--first-seed 0] [--beliefs known,calibrated]
        [--pools 1,4] [--losses rollout-scaled,...] [--tokens]

Each run is 300 steps of 128 prompts x 8 rollouts out of 8,500 prompts; all rules of a seed share prompts and random
numbers. The figures are the mean success rate over the run, of the prompts trained on and of held-out ones, minus
uniform's of the same seed: means over seeds with 95 % intervals, in points. With ``--tokens`` the budget of a step is
the expected cost of uniform groups in tokens, rules also divide by value per token, and rates are compared at equal
tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from knapsack_arena.compare.ranking import estimate
from knapsack_arena.simulator import PRESETS, LearnerSettings, Simulation
from knapsack_arena.strategies import (
    Batch,
    OneRound,
    RolloutRequest,
    StepGenerator,
    StepSpec,
    Strategy,
    run_step,
    take_unseen,
)
from knapsack_arena.update_values.rule import UpdateValue, update_size_rule
from knapsack_arena.update_values.values import GAINS, Update, Weighting
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.beta import HALF_LIFE_PASSES
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.forecast import Beliefs, Forecast
from knapsack_rl.beliefs.static import StaticBeliefs
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import FloatArray
from knapsack_rl.rules import AllocationRule, uniform_rule

PROMPTS, GROUPS, EACH, STEPS, MOST, EVERY = 8_500, 128, 8, 300, 64, 10
OWN_NOISE = 0.1
# The values that are also planned per token.
BY_TOKENS = ("uniform", "chance of a mixed group, paper", "scaled update, own", "the loss's signal and noise, own")


@dataclass(frozen=True)
class Loss:
    """A loss: weights of rollouts, and whether advantages are divided by the group's deviation."""

    weighting: Weighting
    update: Update

    @property
    def settings(self) -> LearnerSettings:
        """The simulated learner with this loss."""
        return replace(LearnerSettings(), weighting=self.weighting, scale_advantages=self.update == "scaled")


LOSSES: Mapping[str, Loss] = {
    "rollout-scaled": Loss("rollout", "scaled"),
    "prompt-scaled": Loss("prompt", "scaled"),
    "rollout-unscaled": Loss("rollout", "unscaled"),
    "prompt-unscaled": Loss("prompt", "unscaled"),
}


def values(loss: Loss) -> Mapping[str, AllocationRule]:
    """The rules that are compared under a loss."""
    of_loss = {"update": loss.update, "weighting": loss.weighting}
    return {
        "uniform": uniform_rule,
        **{f"chance of a mixed group, {gain}": update_size_rule(gain, "mixed", "prompt") for gain in GAINS},
        **{f"scaled update, {gain}": update_size_rule(gain, "scaled", "prompt") for gain in ("own", "shared")},
        "unscaled update, shared": update_size_rule("shared", "unscaled", "prompt"),
        "the loss's signal, shared": update_size_rule("shared", **of_loss),
        "the loss's signal and noise, own": update_size_rule("own", **of_loss, own_noise=OWN_NOISE),
        "the loss's signal and noise, shared": update_size_rule("shared", **of_loss, own_noise=OWN_NOISE),
    }


class TokenPlan(OneRound):
    """A rule whose budget is in tokens instead of rollouts: it divides by value per token."""

    def __init__(self, beliefs: Beliefs, rule: AllocationRule, pool: int, low: int) -> None:
        super().__init__(KnapsackAllocator(beliefs, rule, low, MOST), pool)
        self.beliefs, self.rule, self.low = beliefs, rule, low

    def step(self, spec: StepSpec) -> StepGenerator:
        """Plan by expected tokens, generate, learn, and train on all of it."""
        ids = take_unseen(spec, spec.groups * self.pool)
        forecast = self.beliefs.forecast(ids, spec.step)
        known_P = np.isfinite(forecast.tokens_P)
        typical = float(forecast.tokens_P[known_P].mean()) if known_P.any() else 1.0
        cost_P = np.where(known_P, forecast.tokens_P, typical)
        problem = self.rule(forecast, spec.budget, self.low, MOST)
        budget = spec.budget * float(cost_P.mean())
        counts_P = solve(problem.marginals, budget, problem.low_P, problem.high_P, cost_P).counts_P
        chosen = np.flatnonzero(counts_P)
        outcomes = yield RolloutRequest(tuple(ids[i] for i in chosen), counts_P[chosen])
        self.beliefs.observe(outcomes)
        return Batch(outcomes)


def run(strategy: Strategy, simulation: Simulation) -> FloatArray:
    """One run: tokens so far in millions, mean rate of training prompts and of held-out ones, ``[3, points]``."""
    rows, tokens = [], 0
    for step in range(STEPS):
        if step % EVERY == 0:
            rows.append([tokens / 1e6, simulation.success_rates().mean(), simulation.held_out_rates().mean()])
        result = run_step(strategy, StepSpec(step, GROUPS, GROUPS * EACH, simulation.take), simulation.generate)
        tokens += result.tokens
        simulation.train(result.batch)
    rows.append([tokens / 1e6, simulation.success_rates().mean(), simulation.held_out_rates().mean()])
    return np.array(rows).T


def known(simulation: Simulation) -> Beliefs:
    """True rates."""
    return StaticBeliefs(simulation.success_rates)


def calibrated(simulation: Simulation) -> Beliefs:
    """Calibrated beliefs without features."""
    return CalibratedBeliefs(HALF_LIFE_PASSES * PROMPTS / GROUPS)


BELIEFS: Mapping[str, Callable[[Simulation], Beliefs]] = {"known": known, "calibrated": calibrated}


def at_rollouts(curve: FloatArray, uniform: FloatArray) -> FloatArray:
    """Mean over the run of both rates, in points."""
    return 100 * curve[1:].mean(axis=1)


def at_tokens(curve: FloatArray, uniform: FloatArray) -> FloatArray:
    """Mean of both rates over the first 80 % of uniform's tokens, which every rule spends, in points."""
    grid = np.linspace(0, 0.8 * uniform[0, -1], 50)
    return 100 * np.array([np.interp(grid, curve[0], rates).mean() for rates in curve[1:]])


def compared(
    preset: str, loss: Loss, belief: str, pool: int, seeds: range, by_tokens: bool
) -> Iterator[tuple[str, FloatArray]]:
    """Differences of each rule to uniform's two figures, ``[2, seeds]``; uniform's own figures come first."""
    low = 2 if pool == 1 else 0
    score = at_tokens if by_tokens else at_rollouts

    def strategies(rule: AllocationRule, name: str) -> Mapping[str, Callable[[Beliefs], Strategy]]:
        if name == "uniform":
            return {name: lambda beliefs: OneRound(KnapsackAllocator(beliefs, rule, 2, MOST))}
        planned: dict[str, Callable[[Beliefs], Strategy]] = {
            name: lambda beliefs: OneRound(KnapsackAllocator(beliefs, rule, low, MOST), pool)
        }
        if by_tokens:
            planned[f"{name}, per token"] = lambda beliefs: TokenPlan(beliefs, rule, pool, low)
        return planned

    uniform: list[FloatArray] = []
    for name, rule in values(loss).items():
        if by_tokens and name not in BY_TOKENS:
            continue
        for called, strategy in strategies(rule, name).items():
            found = []
            for seed in seeds:
                simulation = Simulation(PRESETS[preset](PROMPTS, seed), seed=seed, settings=loss.settings)
                found.append(run(strategy(BELIEFS[belief](simulation)), simulation))
            uniform = uniform or found
            scores = np.array([score(curve, own) for curve, own in zip(found, uniform, strict=True)]).T
            base = 0.0 if name == "uniform" else np.array([score(own, own) for own in uniform]).T
            yield called, scores - base


def interval(values: FloatArray, sign: str = "+") -> str:
    """A mean with its 95 % interval."""
    found = estimate(values)
    return f"{found.mean:{sign}.2f} ± {found.half:.2f}".replace("-", "\u2212")


def worked() -> None:
    """The worked numbers of docs/value.md: expected updates, and plans."""
    p = np.array([0.02, 0.1, 0.3, 0.5])
    known_P = np.full(p.size, np.inf)
    tables = {
        "chance of a mixed group": UpdateValue("shared", "mixed", "prompt"),
        "scaled, prompts alike": UpdateValue("shared", "scaled", "prompt"),
        "scaled, rollouts alike": UpdateValue("shared", "scaled", "rollout"),
        "unscaled, prompts alike": UpdateValue("shared", "unscaled", "prompt"),
        "unscaled, rollouts alike": UpdateValue("shared", "unscaled", "rollout"),
    }
    sizes = (2, 3, 4, 8, 16, 32, 64)
    print(f"\n| expected update | p | {' | '.join(f'n = {n}' for n in sizes)} |\n|{'---|' * (len(sizes) + 2)}")
    for name, value in tables.items():
        for rate, row in zip(p, value.signals(p, known_P, MOST), strict=True):
            print(f"| {name} | {rate:g} | {' | '.join(f'{row[n]:.3f}' for n in sizes)} |")
    p = np.array([0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
    forecast = Forecast(p, np.full(p.size, np.inf), np.ones(p.size, dtype=bool), np.full(p.size, np.nan))
    plans: dict[str, AllocationRule] = {
        "chance of a mixed group, paper": update_size_rule("paper", "mixed", "prompt"),
        "chance of a mixed group, own": update_size_rule("own", "mixed", "prompt"),
        "scaled update, own": update_size_rule("own", "scaled", "prompt"),
        "scaled update, shared": update_size_rule("shared", "scaled", "prompt"),
        "unscaled update, shared": update_size_rule("shared", "unscaled", "prompt"),
        "rollouts alike: signal, shared": update_size_rule("shared", "scaled", "rollout"),
    }
    for noise in (0.03, 0.1, 0.3):
        plans[f"rollouts alike: signal and noise {noise:g}, shared"] = update_size_rule(
            "shared", "scaled", "rollout", noise
        )
    print(f"\n| value | {' | '.join(f'p = {rate:g}' for rate in p)} |\n|{'---|' * (p.size + 1)}")
    for name, rule in plans.items():
        problem = rule(forecast, EACH * p.size, 2, MOST)
        counts_P = solve(problem.marginals, EACH * p.size, problem.low_P, problem.high_P).counts_P
        print(f"| {name} | {' | '.join(map(str, counts_P))} |")


def main(words: Sequence[str] | None = None) -> None:
    """Print a table for each loss, belief and pool."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.values", description="Compare values of rollouts.")
    parser.add_argument("--preset", default="balanced", choices=list(PRESETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--beliefs", default="known,calibrated")
    parser.add_argument("--pools", default="1,4")
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--tokens", action="store_true", help="spend tokens instead of rollouts")
    parser.add_argument("--worked", action="store_true", help="only the worked numbers of docs/value.md")
    given = parser.parse_args(words)
    if given.worked:
        worked()
        return
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    for loss in given.losses.split(","):
        for belief in given.beliefs.split(","):
            for pool in map(int, given.pools.split(",")):
                print(f"\n{given.preset}, loss {loss}, beliefs {belief}, pool {pool}\n", flush=True)
                print("| value | trained | held out |\n|---|---|---|")
                for name, gains in compared(given.preset, LOSSES[loss], belief, pool, seeds, given.tokens):
                    sign = "" if name == "uniform" else "+"
                    print(f"| {name} | {interval(gains[0], sign)} | {interval(gains[1], sign)} |", flush=True)


if __name__ == "__main__":
    main()
