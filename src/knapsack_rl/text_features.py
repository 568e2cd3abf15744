"""What prompts look like by their text alone, for `CalibratedBeliefs` where an engine shows no hidden states.

Three views of a text, of equal weight: its runs of one to three characters, its words, and its length. The first two
are counted in hashed bins, which is a sparse random projection: inner products survive (Weinberger et al. 2009,
https://arxiv.org/abs/0902.2206). Length is spread over overlapping bells, half an octave apart, so that a linear model
can follow any smooth curve of it. Nothing is fitted and nothing drawn: a text has the same features in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.notation import FloatArray

Row: TypeAlias = NDArray[np.float32]

CHARACTER_BINS, WORD_BINS = 160, 64
# Centres of the bells, as powers of two: from 1 to some 45,000 characters.
OCTAVES = np.arange(0, 16, 0.5)
WIDTH = CHARACTER_BINS + WORD_BINS + OCTAVES.size
# Signs are words too: they tell a sum from a product.
WORD = r"\w+|[^\w\s]"
# At 1.3 KB each, 85 MB at most.
MOST_REMEMBERED = 1 << 16


class TextFeatures:
    """Features of the prompts it was told of: a `Features` for `CalibratedBeliefs`.

    Memory: 1.3 KB for each of the prompts last told of, texts are not kept. A prompt it was never told of, or has
    forgotten, looks like nothing: features of 0, about which a regression knows its constant only.
    """

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        """Features of no prompt yet.

        Args:
            most: prompts to remember, beside those told of last; more than are planned before their outcomes come back.

        Raises:
            ImportError: scikit-learn is missing, with the extra that brings it.
        """
        try:
            from sklearn.feature_extraction.text import HashingVectorizer
        except ImportError as error:
            raise ImportError(
                "features of texts need scikit-learn, which is not installed: pip install 'knapsack-rl[text]'"
            ) from error
        self.most = most
        self._rows: dict[str, Row] = {}
        self._bins = [
            HashingVectorizer(analyzer="char_wb", ngram_range=(1, 3), n_features=CHARACTER_BINS),
            HashingVectorizer(token_pattern=WORD, n_features=WORD_BINS),
        ]

    def remember(self, prompt_ids: Sequence[str], prompts: Sequence[Any]) -> None:
        """Look at prompts, before a plan is made for them.

        Args:
            prompt_ids: what they are called.
            prompts: as many texts or lists of chat messages.
        """
        new = {i: prompt for i, prompt in zip(prompt_ids, prompts, strict=True) if i not in self._rows}
        looked = dict(zip(new, self._look([prompt_text(prompt) for prompt in new.values()]), strict=True))
        latest = {i: self._rows[i] if i in self._rows else looked[i] for i in prompt_ids}
        kept = {i: row for i, row in self._rows.items() if i not in latest}
        for prompt_id in list(kept)[: max(len(kept) + len(latest) - self.most, 0)]:
            del kept[prompt_id]
        self._rows = kept | latest  # in one go: a thread that learns may be asking

    def __call__(self, prompt_ids: Sequence[str]) -> FloatArray:
        """Features, ``[P, 256]``; 0 for prompts that are not known."""
        found, rows = np.zeros((len(prompt_ids), WIDTH)), self._rows
        for place, prompt_id in enumerate(prompt_ids):
            if prompt_id in rows:
                found[place] = rows[prompt_id]
        return found

    def _look(self, texts: Sequence[str]) -> list[Row]:
        """Features of texts, none of which holds on to another."""
        if not texts:
            return []
        octaves = np.minimum(np.log2([1 + len(text) for text in texts]), OCTAVES[-1])
        bells = np.exp(-2 * (octaves[:, None] - OCTAVES) ** 2)
        views = [*(bins.transform(texts).toarray() for bins in self._bins)]
        views.append(bells / np.linalg.norm(bells, axis=1, keepdims=True))
        return [row.copy() for row in np.concatenate(views, axis=1).astype(np.float32)]


def prompt_text(prompt: Any) -> str:
    """The words of a prompt: a text as it is; of a chat, what is said, without pictures and roles."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, dict):
        return prompt_text(prompt.get("content", prompt.get("text", "")))
    return "\n".join(prompt_text(part) for part in prompt) if isinstance(prompt, list | tuple) else ""
