"""Trials of the laboratory: one rule on one regime with one seed, on a small language model."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from transformers.utils import logging

from knapsack_arena.compare.metrics import MetricsRecorder
from knapsack_arena.compare.trials import Testbed, Trial, TrialSettings, TrialSetup
from knapsack_arena.lab.environment import LanguageModelEnvironment
from knapsack_arena.lab.metrics import InstrumentedEnvironment, LabAssessor
from knapsack_arena.lab.options import SmallerSteps, split_rule
from knapsack_arena.lab.regimes import REGIMES, Regime
from knapsack_arena.loader import resolve
from knapsack_rl.files import run_file

# Measurements of success rates along a run: exact ones cost as much as rollouts, and measuring should take less than a
# quarter of a run.
POINTS: Final = 20
# Steps from one assessed step to the next, in data sets of at most this many prompts and in larger ones.
_LARGE, _EVERY, _EVERY_OF_LARGE = 2000, 5, 10
_CODE: Final = (
    "knapsack_arena/lab/arithmetic.py",
    "knapsack_arena/lab/environment.py",
    "knapsack_arena/lab/long_answers.py",
    "knapsack_arena/lab/metrics.py",
    "knapsack_arena/lab/options.py",
    "knapsack_arena/lab/policy.py",
    "knapsack_arena/lab/regimes.py",
    "knapsack_arena/lab/short_answers.py",
    "knapsack_arena/lab/trials.py",
    "knapsack_arena/lab/wide_policy.py",
    "knapsack_rl/features",
    "knapsack_rl/tasks",
)


def _set_up_language_model(trial: Trial) -> TrialSetup:
    """A base model before its first step, and a rule without memory."""
    logging.disable_progress_bar()  # the bars of loading models would break the display
    name, options = split_rule(trial.rule)
    regime = find_regime(trial.preset)
    regime = dataclasses.replace(regime, learning_rate=regime.learning_rate * options.learning_rate)
    environment = LanguageModelEnvironment(regime, trial.seed, options.loss, look=options.look)
    instrumented = InstrumentedEnvironment(environment)
    groups = options.groups(trial.settings.groups)
    context = dataclasses.replace(
        trial.context(),
        groups=groups,
        truth=instrumented.success_rates,
        features=instrumented.hidden_states,
        kept=environment.kept if options.priced else None,
        min_group=options.min_group,
        step_cost=options.step_cost,
    )
    strategy = resolve(name, context)
    instrumented.record_forecasts(strategy)
    if options.divisor > 1:
        strategy = SmallerSteps(strategy, options)
    assessor = LabAssessor(instrumented, groups, _assessed_every(regime))
    return TrialSetup(instrumented, strategy, MetricsRecorder(instrumented, _followed(regime), assessor))


LANGUAGE_MODELS: Final = Testbed("language models", _set_up_language_model, _CODE, POINTS)


def lab_settings(regime: str, steps: int | None = None) -> TrialSettings:
    """A regime's own sizes; ``steps`` overrides how many an equal division takes.

    Raises:
        ValueError: no such regime.
    """
    found = find_regime(regime)
    return TrialSettings(len(found.train), found.groups, found.average, steps or found.steps)


def lab_trial(rule: str, regime: str, seed: int, steps: int | None = None) -> Trial:
    """A trial in its regime's own sizes; the rule's name may end in options (`knapsack_arena.lab.options`)."""
    return Trial(LANGUAGE_MODELS, rule, regime, seed, lab_settings(regime, steps))


@cache
def find_regime(name: str) -> Regime:
    """The regime of this name, or its instance in ``name/1``, or the one that ``path.py:name`` is or returns.

    Raises:
        ValueError: no such regime.
    """
    family, slash, instance = name.partition("/")
    if family in REGIMES and (not slash or instance.isdecimal()):
        return REGIMES[family](instance=int(instance or 0))
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


def _assessed_every(regime: Regime) -> int | None:
    """Steps from one assessed step to the next; None where true rates would have to be sampled."""
    if regime.verify is not None:
        return None
    return _EVERY_OF_LARGE if len(regime.train) > _LARGE else _EVERY


def _followed(regime: Regime) -> tuple[str, ...] | None:
    """Prompts whose true rates are averaged: the same sample for all rules and seeds; None for all prompts.

    Where rates are sampled, these are the held-out prompts, so that one set of samples serves both.
    """
    if regime.verify is not None:
        return tuple(item.prompt for item in regime.heldout)
    ids = [item.prompt for item in regime.train]
    if len(ids) <= regime.followed:
        return None
    return tuple(ids[row] for row in np.sort(np.random.default_rng(0).choice(len(ids), regime.followed, replace=False)))
