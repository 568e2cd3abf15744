"""The tokens that all prompts begin with, read once: chat templates, system prompts and descriptions of tools.

Not every model can continue from a cache, and the caches of `transformers` change between versions, so both ways are
compared before one is relied on.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

logger = logging.getLogger(__name__)

# A forward pass for the shared tokens is worth it from so many of them, and so large a part of a prompt, and prompts.
LEAST_TOKENS: Final = 16
LEAST_PART: Final = 0.25
LEAST_PROMPTS: Final = 4
# Largest mean squared difference of hidden states, whose mean square is 1, and largest root mean squared difference of
# log-probabilities for which two forward passes count as the same. SmolLM2-135M in bfloat16 has 2e-4 and .08, no more
# than each way differs from float32; where the cache is not read, or its first token lost, it has 4e-3 and more.
STATES: Final = 1e-3
LOG_PROBABILITY: Final = 0.2


class SharedPrefix:
    """Whether a model's forward pass can continue from shared tokens: found out at the first look that has some.

    Attributes:
        works: None before that look.
    """

    def __init__(self) -> None:
        self.works: bool | None = None

    def tokens(self, prompts: Sequence[Sequence[int]], most: Callable[[int], int]) -> int:
        """How many tokens of these prompts are to be read once; 0 if it is not worth it, here or in another process.

        At least one token of each prompt is left.

        Args:
            prompts: token ids.
            most: the largest of a number over all processes.
        """
        shared = 0
        if self.works is not False and len(prompts) >= LEAST_PROMPTS:
            most_shared = min(map(len, prompts)) - 1
            columns = enumerate(zip(*prompts, strict=False))
            shared = min(next((i for i, column in columns if len(set(column)) > 1), most_shared), most_shared)
        worth = shared >= max(LEAST_TOKENS, LEAST_PART * sum(map(len, prompts)) / len(prompts))
        return shared if not most(int(not worth)) else 0

    def used(
        self, prompts: Sequence[Sequence[int]], read: Callable[[int], torch.Tensor], most: Callable[[int], int]
    ) -> torch.Tensor:
        """`policy_features` with shared tokens read once, if it is worth it and the model can, else of whole prompts.

        At the first look both are read. If they agree, the former are returned then too, because a run that was resumed
        has its first look at another step.

        Args:
            prompts: token ids.
            read: reads the features of these prompts, given how many tokens are read once.
            most: the largest of a number over all processes.
        """
        shared = self.tokens(prompts, most)
        if self.works or not shared:
            return read(shared)
        whole_P_F, found_P_F = read(0), None
        try:
            found_P_F = read(shared)
        except Exception:  # of any kind: models differ
            logger.debug("no forward pass continues from shared tokens", exc_info=True)
        alike = found_P_F is not None and _alike(whole_P_F, found_P_F)
        self.works = not most(int(not alike))
        if self.works and found_P_F is not None:
            return found_P_F
        logger.info("prompts are read whole, because this model does not continue from shared tokens")
        return whole_P_F


class Prefix:
    """Shared tokens that a model has read, from which forward passes continue.

    Args:
        model: a causal language model in evaluation mode.
        tokens: the shared tokens.
        device: where the model expects its inputs.

    Raises:
        ValueError: the model returns no cache.
    """

    def __init__(self, model: Any, tokens: Sequence[int], device: torch.device) -> None:
        ids = torch.tensor([list(tokens)], device=device)
        seen = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1)
        # The name differs between versions of transformers.
        name = next((name for name in ("cache", "past_key_values") if name in seen), None)
        if name is None:
            raise ValueError("the model returns no cache")
        self._name, self._cache, self._length = name, seen[name], len(tokens)

    def arguments(self, mask_PG: torch.Tensor) -> dict[str, Any]:
        """Arguments of a forward pass that continues for each row of a mask over the tokens that follow."""
        cache = copy.deepcopy(self._cache)  # a forward pass writes to it
        cache.batch_repeat_interleave(len(mask_PG))
        before = mask_PG.new_ones(len(mask_PG), self._length)
        return {self._name: cache, "use_cache": True, "attention_mask": torch.cat([before, mask_PG], dim=1)}


def _alike(one_P_F: torch.Tensor, other_P_F: torch.Tensor) -> bool:
    """Whether `policy_features` are the same but for rounding."""
    squared_F = (one_P_F - other_P_F).pow(2).mean(0)
    # Comparisons with NaN are false.
    return bool(squared_F[:-1].mean() <= STATES) and bool(squared_F[-1] <= LOG_PROBABILITY**2)
