"""Who is taught: prompts with their starting success rates, the skills they share, and how long their answers are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from knapsack_rl.notation import FloatArray

# Logits beyond this are as good as never or always: sigmoid(-20) is 2 in a billion.
MOST_LOGIT = 20.0


@dataclass(frozen=True)
class Lengths:
    """How completion lengths vary: log-normal around each prompt's median, and cut.

    Attributes:
        spread: standard deviation of the logarithm of a completion's length, for one prompt.
        fall: by how much the logarithm of a prompt's median falls as its success rate goes from 0 to 1.
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
    """Prompts as they stand before training, and some of the same kind that are never trained on.

    Prompt i succeeds with probability ``sigmoid(logits_P[i] + own gain_i + loadings_PK[i] @ skills_K)``; own gains and
    skills are 0 before training.

    Attributes:
        prompt_ids: all different, ``[P]``.
        logits_P: log-odds of success before training, ``[P]``.
        loadings_PK: how much each shared skill helps (or, below 0, hurts) a prompt, ``[P, K]``.
        log_tokens_P: logarithm of the median completion length before training, ``[P]``.
        held_out_logits_H, held_out_loadings_HK: the same of the held-out prompts, ``[H]`` and ``[H, K]``.
        lengths: how completion lengths vary around their medians.

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


def sigmoid(logits: FloatArray) -> FloatArray:
    """1 / (1 + e^-z), without overflow."""
    rates: FloatArray = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return rates


def logit(rates: FloatArray) -> FloatArray:
    """The inverse of `sigmoid`, held within +-20: a rate of exactly 0 becomes "as good as never"."""
    with np.errstate(divide="ignore"):
        logits: FloatArray = np.clip(np.log(rates) - np.log1p(-rates), -MOST_LOGIT, MOST_LOGIT)
    return logits
