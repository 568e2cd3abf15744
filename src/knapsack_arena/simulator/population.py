"""Populations of prompts: initial success rates, shared skills, and completion lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapsack_rl.notation import FloatArray

# Logits are cut here: logistic(-20) is 2 in a billion.
MOST_LOGIT = 20.0


@dataclass(frozen=True)
class Lengths:
    """Distribution of completion lengths: log-normal around each prompt's median, and cut.

    Attributes:
        spread: standard deviation of the logarithm of a completion's length, for one prompt.
        fall: decrease of the logarithm of a prompt's median as its success rate goes from 0 to 1.
        longest: completions are cut at this many tokens; their rewards stay.

    Raises:
        ValueError: a negative spread, or a cut below 1 token.
    """

    spread: float = 0.45
    fall: float = 0.9
    longest: int = 4096

    def __post_init__(self) -> None:
        if not (self.spread >= 0 and self.longest >= 1):
            raise ValueError(
                f"lengths with spread {self.spread}, cut at {self.longest}: use at least 0, and at least 1"
            )


@dataclass(frozen=True, eq=False)
class Population:
    """Prompts before training, and held-out prompts of the same kind that are never trained on.

    Prompt i succeeds with probability ``logistic(logits_P[i] + own gain_i + loadings_PK[i] @ skills_K)``; own gains and
    skills are 0 before training.

    Attributes:
        prompt_ids: all different, ``[P]``.
        logits_P: log-odds of success before training, ``[P]``.
        loadings_PK: effect of each shared skill on a prompt's logit, ``[P, K]``; negative loadings hurt.
        log_tokens_P: logarithm of the median completion length before training, ``[P]``.
        held_out_logits_H, held_out_loadings_HK: the same of the held-out prompts, ``[H]`` and ``[H, K]``.
        lengths: distribution of completion lengths around their medians.

    Raises:
        ValueError: no prompts, ids that occur twice, shapes that do not fit, or numbers that are not finite.
    """

    prompt_ids: tuple[str, ...]
    logits_P: FloatArray
    loadings_PK: FloatArray
    log_tokens_P: FloatArray
    held_out_logits_H: FloatArray
    held_out_loadings_HK: FloatArray
    lengths: Lengths = Lengths()

    def __post_init__(self) -> None:
        prompts, held_out = len(self.prompt_ids), self.held_out_logits_H.size
        skills = self.loadings_PK.shape[-1]
        if not prompts:
            raise ValueError("a population needs at least one prompt")
        if len(set(self.prompt_ids)) != prompts:
            raise ValueError("a prompt id occurs twice in the population: ids must be all different")
        shapes = {
            "logits_P": (prompts,),
            "loadings_PK": (prompts, skills),
            "log_tokens_P": (prompts,),
            "held_out_logits_H": (held_out,),
            "held_out_loadings_HK": (held_out, skills),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, but {prompts} prompts need {shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds a number that is not finite")
            array.flags.writeable = False


def logit(rates: FloatArray) -> FloatArray:
    """log(p / (1 - p)), cut to +-20, so that rates of exactly 0 and 1 have finite logits."""
    with np.errstate(divide="ignore"):
        logits: FloatArray = np.clip(np.log(rates) - np.log1p(-rates), -MOST_LOGIT, MOST_LOGIT)
    return logits
