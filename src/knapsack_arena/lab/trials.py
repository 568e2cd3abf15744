"""Trials of the laboratory: one rule on one regime with one seed, on a small language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from transformers.utils import logging

from knapsack_arena.compare.metrics import MetricsRecorder
from knapsack_arena.compare.trials import Testbed, Trial, TrialSettings, TrialSetup
from knapsack_arena.lab.environment import LanguageModelEnvironment, Loss
from knapsack_arena.lab.metrics import InstrumentedEnvironment, LabAssessor
from knapsack_arena.lab.regimes import REGIMES, Regime
from knapsack_arena.loader import resolve
from knapsack_rl.files import run_file

# Losses by the suffix of a rule's name: ``calibrated@prompt``.
LOSSES: Final[Mapping[str, Loss]] = {
    "rollout": Loss(),
    "prompt": Loss("prompt"),
    "unscaled": Loss(scaled=False),
    "prompt-unscaled": Loss("prompt", scaled=False),
}
# Number of prompts whose rates are averaged, and of measurements of them along a run: exact rates cost as much as
# rollouts, and measuring should take less than a quarter of a run.
FOLLOWED: Final = 500
POINTS: Final = 20
# Steps from one assessed step to the next, in data sets of at most this many prompts and in larger ones.
_LARGE, _EVERY, _EVERY_OF_LARGE = 2000, 5, 10
_CODE: Final = (
    "knapsack_arena/lab/environment.py",
    "knapsack_arena/lab/metrics.py",
    "knapsack_arena/lab/policy.py",
    "knapsack_arena/lab/regimes.py",
    "knapsack_arena/lab/trials.py",
    "knapsack_rl/features",
    "knapsack_rl/tasks",
)


def _set_up_language_model(trial: Trial) -> TrialSetup:
    """A base model before its first step, and a rule without memory."""
    logging.disable_progress_bar()  # the bars of loading models would break the display
    name, loss = split_rule(trial.rule)
    regime = find_regime(trial.preset)
    environment = InstrumentedEnvironment(LanguageModelEnvironment(regime, trial.seed, loss))
    context = dataclasses.replace(trial.context(), truth=environment.success_rates, features=environment.hidden_states)
    strategy = resolve(name, context)
    environment.record_forecasts(strategy)
    every = _EVERY_OF_LARGE if len(regime.train) > _LARGE else _EVERY
    assessor = LabAssessor(environment, trial.settings.groups, every)
    return TrialSetup(environment, strategy, MetricsRecorder(environment, _followed(regime), assessor))


LANGUAGE_MODELS: Final = Testbed("language models", _set_up_language_model, _CODE, POINTS)


def lab_settings(regime: str, steps: int | None = None) -> TrialSettings:
    """A regime's own sizes; ``steps`` overrides how many an equal division takes.

    Raises:
        ValueError: no such regime.
    """
    found = find_regime(regime)
    return TrialSettings(len(found.train), found.groups, found.average, steps or found.steps)


def lab_trial(rule: str, regime: str, seed: int, steps: int | None = None) -> Trial:
    """A trial in its regime's own sizes; the rule's name may end in ``@`` and a loss."""
    return Trial(LANGUAGE_MODELS, rule, regime, seed, lab_settings(regime, steps))


def split_rule(rule: str) -> tuple[str, Loss]:
    """Split ``NAME@LOSS``; without a known loss at its end, all of it is the name."""
    name, at, loss = rule.rpartition("@")
    return (name, LOSSES[loss]) if at and loss in LOSSES else (rule, Loss())


@cache
def find_regime(name: str) -> Regime:
    """The regime of this name, or the one that ``path.py:name`` is or returns.

    Raises:
        ValueError: no such regime.
    """
    if name in REGIMES:
        return REGIMES[name]()
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        raise ValueError(
            f"there is no regime {name!r}: choose from {', '.join(REGIMES)}, or give one of your own as FILE.py:NAME"
        )
    thing = getattr(run_file(Path(path)), attribute, None)
    found = thing() if callable(thing) else thing
    if not isinstance(found, Regime):
        raise ValueError(
            f"{name} is {found!r}, which is not a regime: name a knapsack_arena.lab.regimes.Regime, or a function that"
            " returns one"
        )
    return found


def _followed(regime: Regime) -> tuple[str, ...] | None:
    """Prompts whose true rates are averaged: the same sample for all rules and seeds; None for all prompts."""
    ids = [item.prompt for item in regime.train]
    if len(ids) <= FOLLOWED:
        return None
    return tuple(ids[row] for row in np.sort(np.random.default_rng(0).choice(len(ids), FOLLOWED, replace=False)))
