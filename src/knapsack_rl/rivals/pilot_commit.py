"""Pilot-Commit: a pilot of every prompt, and three times as many rollouts for those of middling difficulty.

Source: arXiv 2605.26606; code: databricks/pilot-commit, ``recipe/pc`` (``pc_ray_trainer.py``, ``replay_buffer.py``) and
``train_scripts/pc_qwen3-4b_p16c48.sh``, whose settings are the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knapsack_rl.groups import no_groups, pick, to_train
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.rivals.dapo import MOST_BATCHES
from knapsack_rl.rivals.memory import damaged, load_memory, save_memory
from knapsack_rl.rivals.speed import begun_and_new, settle
from knapsack_rl.rivals.waiting import Waiting
from knapsack_rl.strategy import Request, Turn, fresh

# Binary rewards make pass rates exact fractions, and the band's ends belong to it.
TOLERANCE = 1e-9
# Prompts looked at for the pilots of a round, in units of those wanted.
PATIENCE = 10


@dataclass
class PilotCommit:
    """``n_pilot`` rollouts of fresh prompts; where ``low <= pass rate <= high``, ``n_commit`` more a round later.

    Every round is one call to the engine: it commits to as many of the prompts that wait as the batch still misses,
    chosen at random, and pilots ``oversampling`` batches of fresh ones. A group that is trained on has all its
    n_pilot + n_commit rollouts. A prompt whose pilot was solved throughout is excluded from then on; one outside the
    band is met again when the sampler gets to it. At the end of a step, what has waited for more than ``max_age`` steps
    is dropped.

    Scale (our reading). The script's group is n = 64 whatever the data; so a batch is full with ``budget // 64`` groups
    (at least one), the rollouts of an equal division. A full step without surplus costs half as much again as the
    budget: 3 pilots of 16 and a commitment of 48 for each group.

    Left out: the off-policy correction of pilots of an older policy (a matter of the loss), and that the authors empty
    the buffer at the end of an epoch and apply exclusions only then (no rule is told here when an epoch ends).

    Degenerate cases. A prompt that waits, or was drawn in this step, is not piloted again (in the authors' code a new
    pilot replaces the old). No more than 10 times the prompts wanted are looked at for those that are not excluded; if
    that finds none and the step has nothing else to draw, the excluded are piloted again (our reading). At the limit of
    ``max_rounds`` the authors' code raises an error and the run ends; here the step trains on what it has, as it does
    when neither the sampler nor the queue has anything left; without any whole group, on the last pilots with two
    answers, whose gradient then is that of small groups (our reading).

    Attributes:
        seed: of the choice among those that wait, with the step.
        n_pilot, n_commit: rollouts of the pilot and of the commitment.
        low, high: the band of pass rates, ends included.
        max_age: steps after which a pilot is too old.
        oversampling: prompts piloted in a round, in units of the batch.
        max_rounds: rounds of a step at most.

    Raises:
        ValueError: a pilot of fewer than 2, a band that is none, or other numbers below their least.
    """

    seed: int = 0
    n_pilot: int = 16
    n_commit: int = 48
    low: float = 0.125
    high: float = 0.75
    max_age: int = 4
    oversampling: int = 3
    max_rounds: int = MOST_BATCHES

    def __post_init__(self) -> None:
        for name, least in (("n_pilot", 2), ("n_commit", 1), ("max_age", 0), ("oversampling", 1), ("max_rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: use at least {least}")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"the band of pass rates is {self.low}..{self.high}: it must lie in [0, 1]")
        self.waiting = Waiting()
        self.excluded: set[str] = set()

    def step(self, request: Request) -> Turn:
        """Rounds of committing and piloting, until the batch is full."""
        rng = np.random.default_rng([self.seed, request.step])
        groups = max(1, request.budget // (self.n_pilot + self.n_commit))
        finished: list[Outcomes] = []
        missing, met, last = groups, set[str](), no_groups(request.step)
        for _ in range(self.max_rounds):
            chosen = np.sort(rng.permutation(len(self.waiting))[:missing])
            new = self._fresh(request, self.oversampling * groups, met)
            met.update(new)
            if not chosen.size and not new:
                break
            outcomes = yield begun_and_new(self.waiting, chosen, new, self.n_commit, self.n_pilot)
            done, last = settle(self.waiting, chosen, outcomes)
            self._judge(last)
            finished.append(done)
            missing -= chosen.size
            if not missing:
                break
        self.waiting.remove(np.flatnonzero(request.step - self.waiting.born_P > self.max_age))
        return to_train(request.step, finished, groups, last)

    def _fresh(self, request: Request, wanted: int, met: set[str]) -> tuple[str, ...]:
        """The next prompts to pilot; the excluded are among them only if there is nothing else to do in this step."""
        busy = met | set(self.waiting.groups.prompt_ids)
        new = fresh(request, wanted, busy | self.excluded, PATIENCE)
        return new if new or busy else fresh(request, wanted)

    def _judge(self, pilots: Outcomes) -> None:
        """Queue what lies in the band, and exclude what is solved; a pilot without answers does neither."""
        rates_P = pilots.pass_rates_P
        banded_P = (rates_P >= self.low - TOLERANCE) & (rates_P <= self.high + TOLERANCE) & (pilots.attempts_P >= 2)
        self.waiting.add(pick(pilots, banded_P))
        self.excluded.update(pick(pilots, rates_P >= 1).prompt_ids)

    def save(self, path: Path) -> None:
        """Write the pilots that wait and the exclusions, all or nothing."""
        save_memory(path, "pilot-commit", {**self.waiting.fields(), "excluded": sorted(self.excluded)})

    def load(self, path: Path) -> None:
        """Take up what `save` wrote.

        Raises:
            BeliefFileError: the file is missing, damaged, or of another rule; then nothing changes.
        """
        found = load_memory(path, "pilot-commit")
        try:
            waiting, excluded = Waiting.of_fields(found), set(map(str, found["excluded"]))
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, error) from error
        self.waiting, self.excluded = waiting, excluded
