"""Looks at prompts where an engine shows no hidden states: by a file, by texts, or by neither; and its confidence."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from knapsack_rl.beliefs.looks import Looks, log_odds
from knapsack_rl.features.text import TextFeatures, prompt_key
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures

AUTO: Final = "auto"
TEXT: Final = "text"
# Said where texts are used: on two regimes of the laboratory they are much behind hidden states (docs/log.md).
BETTER: Final = "a file of `knapsack-rl features` tells more"

logger = logging.getLogger(__name__)


def resolved(features: str | None) -> str | None:
    """The setting ``features`` without ``auto``, which stands for ``text`` where the library for it is installed."""
    if features != AUTO:
        return features
    return TEXT if importlib.util.find_spec("sklearn") is not None else None


def greedy_log_prob(log_probs: Sequence[float] | None) -> float:
    """The log-probability of the one greedy token that an engine was asked for.

    Raises:
        ValueError: an engine that gives none, or another number.
    """
    if not log_probs or not math.isfinite(log_probs[0]) or log_probs[0] > 1e-3:
        raise ValueError(f"the engine gave the log-probabilities {log_probs}: one of at most 0 was asked for")
    return min(float(log_probs[0]), 0.0)


class FailedLooks:
    """A look that fails costs its prompt the confidence and not the step; the first failure is said."""

    def __init__(self, metric: str) -> None:
        """Nothing has failed; ``metric`` is where failures are counted."""
        self._metric, self._warned = metric, False

    def as_unknown(self, found: Sequence[float | BaseException]) -> FloatArray:
        """Answers or errors as log-probabilities, ``[P]``; NaN for errors."""
        failed = [each for each in found if isinstance(each, BaseException)]
        if failed and not self._warned:
            self._warned = True
            logger.warning(
                "%d of %d looks failed (%s: %s): these prompts are planned without; later failures count in %s",
                len(failed), len(found), type(failed[0]).__name__, failed[0], self._metric,
            )  # fmt: skip
        return np.array([math.nan if isinstance(each, BaseException) else each for each in found], dtype=np.float64)


class PromptLooks:
    """What prompts look like: features of their words, computed once for each, and the confidence of this step.

    Attributes:
        described: what the features are, for a line at start-up; empty if there are none.
    """

    def __init__(self, features: str | None) -> None:
        """Read a file, or set up the hashing of texts.

        Args:
            features: ``text``; a file that ``knapsack-rl features`` has written; None for no features.

        Raises:
            ImportError: features of texts without scikit-learn.
            ValueError: no such file; BeliefFileError, one that is damaged or of another kind.
        """
        self._looks, self._text = Looks(), TextFeatures() if features == TEXT else None
        self._file: str | None = None  # None once its missing prompts were reported
        self.described = f"texts ({BETTER})" if features == TEXT else ""
        if features is not None and features != TEXT:
            path = Path(features).expanduser()
            if not path.is_file():
                raise ValueError(
                    f"there is no file {features} in {Path.cwd()}: `knapsack-rl features` writes one; or choose text "
                    "or none"
                )
            self._looks.load(path)
            self._file = features
            self.described = f"{features} ({len(self._looks):,} prompts by {self._looks.source})"

    def __call__(self, prompts: Sequence[Any], log_prob_P: ArrayLike | None = None) -> PromptFeatures:
        """Look at prompts.

        Args:
            prompts: texts or chat messages, ``[P]``; None where they are not known, which have no features then.
            log_prob_P: log-probability of the most probable next token, ``[P]``; NaN where it is not known, None if it
                is known nowhere.
        """

        def describe(rows: IntArray) -> FloatArray:
            assert self._text is not None
            return self._text([prompts[i] for i in rows.tolist()]).features_P_F

        odds_P = None if log_prob_P is None else log_odds(log_prob_P)
        keys = [prompt_key(prompt) for prompt in prompts]
        if self._file is not None:
            self._say_what_the_file_lacks(keys)
        found = self._looks(keys, odds_P, describe if self._text else None)
        found.features_P_F[[prompt is None for prompt in prompts]] = np.nan
        return found

    def _say_what_the_file_lacks(self, keys: Sequence[str]) -> None:
        """Warn once, of the first batch with a prompt that the file does not know."""
        lacking = len(self._looks.unknown(keys))
        if lacking:
            logger.warning(
                "%s has no features of %d of the %d prompts of a batch: they are planned without. Make it again with "
                "`knapsack-rl features`, of the data that are trained on, with prompts as the policy sees them",
                self._file, lacking, len(set(keys)),
            )  # fmt: skip
            self._file = None
