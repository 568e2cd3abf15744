"""Weigh advantages by how rare a rollout's way of solving is within its group.

The advantage of a rollout is multiplied by f^-alpha, where f is the number of rollouts of its group that belong to the
same cluster, right and wrong ones counted (Uniqueness-Aware RL, arXiv 2601.08763). With alpha = 0 it is GRPO. What a
cluster is, the user decides: a judge's labels, or one of the functions here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray

# A prompt and the completions of its group; a label for each completion.
Cluster: TypeAlias = Callable[[Any, Sequence[Any]], Sequence[Hashable]]

_BOXED: Final = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")


@dataclass(frozen=True)
class Rarity:
    """Factors for advantages: f^-alpha for rollouts whose cluster has f members in their group.

    Attributes:
        cluster: gives each completion of a group a label.
        alpha: exponent, 0 or more; 0 changes nothing.
        share: use f / n, the share of the group, in place of f. A prompt that a plan gave many rollouts has large
            clusters: f weakens its advantages as a whole, f / n does not.

    Raises:
        ValueError: an exponent that is negative or not finite.
    """

    cluster: Cluster
    alpha: float = 0.5
    share: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha is {self.alpha}: an exponent of 0 or more is needed")

    def weights(self, group_PG: IntArray, prompts_PG: Sequence[Any], completions_PG: Sequence[Any]) -> FloatArray:
        """Factors of the advantages, ``[PG]``.

        Args:
            group_PG: group of each rollout, ``[PG]``.
            prompts_PG: prompt of each rollout; those of a group are equal.
            completions_PG: completion of each rollout.

        Raises:
            ValueError: sequences of different lengths, or a number of labels that is not that of the completions.
        """
        if not len(group_PG) == len(prompts_PG) == len(completions_PG):
            raise ValueError(
                f"{len(group_PG)} groups, {len(prompts_PG)} prompts and {len(completions_PG)} completions: pass one of"
                " each for every rollout"
            )
        weights_PG = np.ones(len(group_PG))
        if self.alpha == 0:
            return weights_PG
        for group in np.unique(group_PG):
            rows: list[int] = np.flatnonzero(group_PG == group).tolist()
            labels = list(self.cluster(prompts_PG[rows[0]], [completions_PG[row] for row in rows]))
            if len(labels) != len(rows):
                raise ValueError(f"the cluster function gave {len(labels)} labels for {len(rows)} completions")
            sizes = np.array([labels.count(label) for label in labels], dtype=np.float64)
            weights_PG[rows] = (sizes / len(rows) if self.share else sizes) ** -self.alpha
        return weights_PG


def by_final_expression(prompt: Any, completions: Sequence[Any]) -> list[str]:
    r"""Cluster by the last ``\boxed{...}``, or else the last line, without spaces and case."""
    found = []
    for completion in completions:
        text = _text(completion)
        boxed = _BOXED.findall(text)
        last = boxed[-1] if boxed else (text.strip().splitlines() or [""])[-1]
        found.append(re.sub(r"\s+", "", last).casefold())
    return found


def by_embedding(embed: Callable[[list[str]], Any], distance: float = 0.3) -> Cluster:
    """Cluster completions whose embeddings lie within a cosine distance of each other (average linkage).

    Args:
        embed: gives vectors for texts, ``[texts, dimensions]``; for example ``SentenceTransformer(...).encode``.
        distance: largest mean cosine distance within a cluster.

    Returns:
        A function for `Rarity`; it needs scikit-learn.
    """

    def cluster(prompt: Any, completions: Sequence[Any]) -> list[int]:
        from sklearn.cluster import AgglomerativeClustering

        if len(completions) < 2:
            return [0] * len(completions)
        vectors = np.asarray(embed([_text(each) for each in completions]), dtype=np.float64)
        model = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=distance)
        return [int(label) for label in model.fit_predict(vectors)]

    return cluster


def _text(completion: Any) -> str:
    """Text of a completion: itself, or the contents of its messages."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)
