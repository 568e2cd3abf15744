"""How old may the log odds of a look be? The rule of MQL-UCB (arXiv 2311.15238) for looking anew, and simpler ones.

    python -m benchmarks.refresh [--regimes skills,keys] [--seeds 4]

All beliefs observe one run, as in `benchmarks.forecasts`: calibrated, with hidden states of the first look, and log
odds that are kept until a rule drops them. A prompt is looked at when it is offered and none are kept. Columns: squared
error of the expected rate; value at true rates of the plan over the pool, as a share of the best plan's, and what it
loses against log odds of every step, in points on the same seeds; and the share of offered prompts that are looked at.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from benchmarks.forecasts import Candidate, interval, measure
from knapsack_arena.lab.environment import LanguageModelEnvironment
from knapsack_arena.lab.regimes import REGIMES
from knapsack_arena.strategies.protocol import FeatureSource
from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.beliefs.online_logistic import OnlineLogistic
from knapsack_rl.notation import FloatArray, PromptFeatures
from knapsack_rl.outcomes import Outcomes


class Aged(CalibratedBeliefs):
    """Calibrated beliefs given log odds that are dropped after ``most`` steps; they count the prompts looked at."""

    def __init__(self, half_life: float, fresh: FeatureSource, most: float = math.inf) -> None:
        super().__init__(half_life)
        self.fresh, self.most, self.step = fresh, most, -1
        self.kept: dict[str, tuple[int, FloatArray]] = {}  # log odds, with the step that they are of
        self.offered = self.looked_at = 0

    def look(self, prompt_ids: Sequence[str]) -> PromptFeatures:
        """Look at the prompts of the next step."""
        self.step += 1
        found = self.fresh(prompt_ids)
        for prompt_id, log_odds in dict(zip(prompt_ids, found.confidence_P_C, strict=True)).items():
            self.offered += 1
            taken = self.kept[prompt_id][0] if prompt_id in self.kept else -math.inf
            if self.step - taken >= self.most:
                self.kept[prompt_id] = self.step, log_odds
                self.looked_at += 1
        return found._replace(confidence_P_C=np.array([self.kept[prompt_id][1] for prompt_id in prompt_ids]))


class Answered(Aged):
    """Log odds are dropped when the prompt was answered."""

    def observe(self, outcomes: Outcomes) -> None:
        """Learn, and drop."""
        super().observe(outcomes)
        for prompt_id in outcomes.prompt_ids:
            self.kept.pop(prompt_id, None)


class Doubled(Aged):
    """All log odds are dropped when det L of the regression on them is twice what it was when they last were.

    L is the regression's precision, which decays; or, without ``decay``, its prior and the information of all batches.

    Attributes:
        refreshes, most_refreshes: how often that happened, and how often it can have: d log2(1 + T / (d lambda)) for d
            inputs with a prior precision of lambda, T the sum of their squared lengths, weighted as in L.
    """

    def __init__(self, half_life: float, fresh: FeatureSource, decay: bool) -> None:
        super().__init__(half_life, fresh)
        self.decay, self.refreshes, self.most_refreshes = decay, 0, 0.0
        self._all_F_F, self._log_det = np.zeros((0, 0)), 0.0

    def observe(self, outcomes: Outcomes) -> None:
        """Learn, and drop all if that was enough."""
        before = self.combiner
        super().observe(outcomes)
        if self.combiner is not None:
            self.count(before, self.combiner)

    def count(self, before: OnlineLogistic | None, after: OnlineLogistic) -> None:
        """Add what a batch told; ``before`` is the regression before it, None if there was none."""
        prior_F_F, size = np.diag(after.ridge_F), after.ridge_F.size
        if before is None:
            self._all_F_F, self._log_det = prior_F_F, float(np.log(after.ridge_F).sum())
        earlier_F_F = prior_F_F if before is None else before.precision_F_F
        decayed_F_F = after.discount * earlier_F_F + (1 - after.discount) * prior_F_F
        self._all_F_F = self._all_F_F + after.precision_F_F - decayed_F_F
        self.most_refreshes = float(size * np.log2(np.trace(self._all_F_F) / size) - np.log2(after.ridge_F).sum())
        log_det = float(np.linalg.slogdet(after.precision_F_F if self.decay else self._all_F_F)[1])
        if log_det >= self._log_det + math.log(2):
            self._log_det, self.refreshes = log_det, self.refreshes + 1
            self.kept.clear()


Made: TypeAlias = dict[str, Aged]


def candidates(made: list[Made], environment: LanguageModelEnvironment, half_life: float) -> dict[str, Candidate]:
    """Beliefs by what makes them look anew, appended to ``made``; the first does at every step, as the library does."""

    @functools.lru_cache(1)  # one pass of the model serves all beliefs
    def look(step: int, prompt_ids: tuple[str, ...]) -> PromptFeatures:
        return environment.hidden_states(prompt_ids)

    def fresh(prompt_ids: Sequence[str]) -> PromptFeatures:
        return look(environment.step, tuple(prompt_ids))

    ages = {"at every step": 1, **{f"{k} steps old": k for k in (2, 4, 8, 16)}, "once": math.inf}
    beliefs = {rule: Aged(half_life, fresh, most) for rule, most in ages.items()} | {
        "answered since": Answered(half_life, fresh),
        "det L doubled": Doubled(half_life, fresh, decay=True),
        "det L doubled, without decay": Doubled(half_life, fresh, decay=False),
    }
    made.append(beliefs)
    return {rule: Candidate(each, each.look) for rule, each in beliefs.items()}


def main() -> None:
    """Print a table for each regime."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refresh", description=__doc__)
    parser.add_argument("--regimes", default="skills,keys")
    parser.add_argument("--seeds", type=int, default=4)
    given = parser.parse_args()
    for name in given.regimes.split(","):
        regime, made = REGIMES[name](), list[Made]()
        runs = [measure(regime, seed, regime.steps, functools.partial(candidates, made)) for seed in range(given.seeds)]
        print(f"\n{name}, seeds 0 to {given.seeds - 1}\n")
        print("| looked at anew | squared error | value, pool | points lost | looked at | refreshes | at most |")
        print("|---|---|---|---|---|---|---|")
        for rule in made[0]:
            error, _, value, _ = np.array([run[rule] for run in runs]).T
            lost = 100 * (np.array([run["at every step"][2] for run in runs]) - value)
            beliefs = [each[rule] for each in made]
            share = np.mean([each.looked_at / each.offered for each in beliefs])
            doubled = [(each.refreshes, each.most_refreshes) for each in beliefs if isinstance(each, Doubled)]
            times = "{:.0f} | {:.0f}".format(*np.mean(doubled, axis=0)) if doubled else " | "
            figures = (interval(error, 4), interval(value, 3), interval(lost, 1), f"{share:.0%}", times)
            print(f"| {rule} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
