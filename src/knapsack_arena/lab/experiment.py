"""An experiment in the laboratory, checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np
from transformers.utils import logging

from knapsack_arena.compare.experiment import Experiment, Labels
from knapsack_arena.compare.results import Scoring
from knapsack_arena.compare.trials import TrialSettings
from knapsack_arena.lab.options import split_rule
from knapsack_arena.lab.trials import LANGUAGE_MODELS, find_regime, lab_settings
from knapsack_arena.loader import resolve
from knapsack_rl.notation import PromptFeatures

LABELS: Final = Labels("lab", "regime", "regime", "held-out success rate", "oracle-pool, the oracle over a pool")
SCORING: Final = Scoring("held_out_p", "oracle-pool", monotone=True)


def lab_experiment(
    rules: tuple[str, ...], regimes: tuple[str, ...], seeds: tuple[int, ...], steps: int | None = None
) -> Experiment:
    """An experiment on small language models.

    Args:
        rules: names of rules, or ``path.py:name``, each with an optional ``@`` and a loss.
        regimes: names of regimes, or ``path.py:name``.
        seeds: of prompt order, of sampling, and of what rules draw at random; the base model is the same for all.
        steps: steps under equal division; by default those of each regime.

    Raises:
        ValueError: a rule or regime that does not exist, or is named twice; or no seeds.
    """
    settings = {regime: lab_settings(regime, steps) for regime in regimes}
    described = {regime: _in_words(each) for regime, each in settings.items()}
    experiment = Experiment(LANGUAGE_MODELS, rules, regimes, seeds, settings, described, LABELS, SCORING)
    context = dataclasses.replace(
        experiment.trials[0].context(),
        truth=lambda ids: np.zeros(len(ids)),
        features=lambda ids: PromptFeatures(np.zeros((len(ids), 1)), np.zeros((len(ids), 0))),
    )
    for rule in experiment.rules:
        resolve(split_rule(rule)[0], context)
    return experiment


def build_base_models(experiment: Experiment, say: Callable[[str], None]) -> None:
    """Build the base models that the cache lacks, before workers would each build their own.

    Args:
        experiment: whose regimes.
        say: called with a line for each model and its progress.
    """
    logging.disable_progress_bar()
    for name in experiment.presets:

        def progress(done: int, steps: int, name: str = name) -> None:
            if done % max(steps // 4, 1) == 0:
                say(f"{name}: warm start of the base model, step {done} of {steps}")

        say(f"{name}: base model {find_regime(name).base_model(progress)}")


def _in_words(settings: TrialSettings) -> str:
    return (
        f"{settings.prompts:,} prompts, {settings.groups} x {settings.average} rollouts a step,"
        f" {settings.steps} steps of uniform, {settings.rollouts:,} rollouts"
    )
