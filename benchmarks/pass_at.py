"""pass@1 and pass@k of a policy on held-out prompts, where many answers are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from knapsack_arena.lab.environment import LanguageModelEnvironment
from knapsack_arena.lab.policy import Tokens
from knapsack_rl.notation import BoolArray, IntArray

SAMPLES: Final = 16
DRAWN: Final = 8


def pass_at(hits_P: IntArray, samples: int, drawn: int) -> float:
    """Mean probability that ``drawn`` of a prompt's ``samples`` answers hold a right one (Chen et al., 2107.03374).

    Args:
        hits_P: right answers of each prompt, ``[P]``.
        samples: answers of each prompt.
        drawn: at most ``samples``.
    """
    misses_P_K = (samples - np.asarray(hits_P))[:, None] - np.arange(drawn)
    none_P = (np.maximum(misses_P_K, 0) / (samples - np.arange(drawn))).prod(axis=1)
    return float(1 - none_P.mean())


def sampled(environment: LanguageModelEnvironment) -> tuple[list[Tokens], BoolArray]:
    """`SAMPLES` answers to each held-out prompt, and whether each is right, ``[P * SAMPLES]``."""
    which: Sequence[int] = list(environment._heldout)
    answers = environment.policy.sample(which, [SAMPLES] * len(which), torch.Generator().manual_seed(0))
    right = [environment.policy.right(which[i // SAMPLES], each) for i, each in enumerate(answers)]
    return answers, np.array(right, dtype=np.bool_)
