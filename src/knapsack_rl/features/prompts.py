"""Looks at prompts where an engine shows no hidden states: by a file, by texts, or by neither; and its confidence."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import ArrayLike

from knapsack_rl.beliefs.looks import Looks, log_odds
from knapsack_rl.features.text import TextFeatures, prompt_key
from knapsack_rl.notation import FloatArray, IntArray, PromptFeatures

AUTO: Final = "auto"
TEXT: Final = "text"


def resolved(features: str | None) -> str | None:
    """The setting ``features`` without ``auto``, which stands for ``text`` where the library for it is installed."""
    if features != AUTO:
        return features
    return TEXT if importlib.util.find_spec("sklearn") is not None else None


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
        self.described = "texts" if features == TEXT else ""
        if features is not None and features != TEXT:
            path = Path(features).expanduser()
            if not path.is_file():
                raise ValueError(
                    f"there is no file {features} in {Path.cwd()}: `knapsack-rl features` writes one; or choose text "
                    "or none"
                )
            self._looks.load(path)
            self.described = f"{features} ({len(self._looks):,} prompts by {self._looks.source})"

    def __call__(self, prompts: Sequence[Any], log_prob_P: ArrayLike | None = None) -> PromptFeatures:
        """Look at prompts.

        Args:
            prompts: texts or chat messages, ``[P]``.
            log_prob_P: log-probability of the most probable next token, ``[P]``; NaN where it is not known, None if it
                is known nowhere.
        """

        def describe(rows: IntArray) -> FloatArray:
            assert self._text is not None
            return self._text([prompts[i] for i in rows.tolist()]).features_P_F

        odds_P = None if log_prob_P is None else log_odds(log_prob_P)
        return self._looks([prompt_key(prompt) for prompt in prompts], odds_P, describe if self._text else None)
