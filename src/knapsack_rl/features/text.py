"""Features of a prompt's text, for `CalibratedBeliefs` where an engine shows no hidden states.

Three views of equal weight: the runs of one to three characters of a text, its words, and its length. The first two are
counted in hashed bins, which is a sparse random projection: it preserves inner products (Weinberger et al. 2009,
https://arxiv.org/abs/0902.2206). The length is encoded by overlapping Gaussians of its logarithm, half an octave apart,
so that a linear model can fit any smooth function of it. Nothing is fitted and nothing is random: a text has the same
features in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from knapsack_rl.beliefs.ids import content_id
from knapsack_rl.notation import PromptFeatures

CHARACTER_BINS, WORD_BINS = 160, 64
# Centres of the Gaussians, as powers of two: from 1 to about 45,000 characters.
OCTAVES = np.arange(0, 16, 0.5)
WIDTH = CHARACTER_BINS + WORD_BINS + OCTAVES.size
# Signs count as words: they distinguish a sum from a product.
WORD = r"\w+|[^\w\s]"


class TextFeatures:
    """A function from prompts to their features; it keeps no memory of them."""

    def __init__(self) -> None:
        """Set up the hashing.

        Raises:
            ImportError: scikit-learn is missing; the message names the extra that installs it.
        """
        try:
            from sklearn.feature_extraction.text import HashingVectorizer
        except ImportError as error:
            raise ImportError(
                "features of texts need scikit-learn, which is not installed: pip install 'knapsack-rl[text]'"
            ) from error
        self._hashed = [
            HashingVectorizer(analyzer="char_wb", ngram_range=(1, 3), n_features=CHARACTER_BINS),
            HashingVectorizer(token_pattern=WORD, n_features=WORD_BINS),
        ]

    def __call__(self, prompts: Sequence[Any]) -> PromptFeatures:
        """Features of prompts, each a text or a list of chat messages: ``[P, 256]``, of float32 precision."""
        # Scikit-learn encodes them, which fails for half of a surrogate pair.
        texts = [prompt_text(prompt).encode("utf-8", "replace").decode() for prompt in prompts]
        if not texts:
            return PromptFeatures(np.zeros((0, WIDTH)), np.zeros((0, 0)))
        octaves = np.minimum(np.log2([1 + len(text) for text in texts]), OCTAVES[-1])
        lengths = np.exp(-2 * (octaves[:, None] - OCTAVES) ** 2)
        views = [*(hashed.transform(texts).toarray() for hashed in self._hashed)]
        views.append(lengths / np.linalg.norm(lengths, axis=1, keepdims=True))
        # Rounded, so that the last bits do not depend on how many texts are transformed together.
        features_P_F = np.concatenate(views, axis=1).astype(np.float32).astype(np.float64)
        return PromptFeatures(features_P_F, np.zeros((len(texts), 0)))


def prompt_key(prompt: Any) -> str:
    """The id of a prompt's words: one for a text, and for a chat of the same text."""
    return content_id(prompt_text(prompt))


def prompt_text(prompt: Any) -> str:
    """The words of a prompt: a text unchanged; the contents of chat messages, without roles and images.

    Messages may be an array of objects, as tables have them.
    """
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, np.ndarray):
        return prompt_text(prompt.tolist())
    if isinstance(prompt, dict):
        return prompt_text(prompt.get("content", prompt.get("text", "")))
    return "\n".join(prompt_text(part) for part in prompt) if isinstance(prompt, list | tuple) else ""
