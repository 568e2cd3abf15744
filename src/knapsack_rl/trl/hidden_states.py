"""What the trained policy shows of the candidates of a step, for beliefs to learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from knapsack_rl.calibrated import Look
from knapsack_rl.notation import FloatArray
from knapsack_rl.policy_features import as_look, policy_features


class HiddenStates:
    """Features of the candidates of the present step, for `CalibratedBeliefs`; the trainer fills them in.

    They are not part of a checkpoint: a resumed run computes them anew, from the same weights.
    """

    def __init__(self) -> None:
        """Nothing known yet."""
        self._row_of: dict[str, int] = {}
        self._features_P_F: FloatArray | None = None

    def fill(self, prompt_ids: Sequence[str], features_P_F: FloatArray) -> None:
        """From here on these prompts look like this, rows of `policy_features`, and no others are known."""
        self._row_of = {prompt_id: row for row, prompt_id in enumerate(prompt_ids)}
        self._features_P_F = features_P_F

    def __call__(self, prompt_ids: Sequence[str]) -> Look:
        """What prompts look like.

        Raises:
            ValueError: a prompt that is no candidate of the present step.
        """
        for prompt_id in prompt_ids:
            if prompt_id not in self._row_of:
                raise ValueError(
                    f"the hidden states of prompt {prompt_id!r} are not known: only those of the present step's "
                    "candidates are kept"
                )
        assert self._features_P_F is not None
        return as_look(self._features_P_F[[self._row_of[prompt_id] for prompt_id in prompt_ids]])


@torch.no_grad()
def hidden_states(model: Any, prompts: Sequence[Sequence[int]], batch_size: int, autocast: Any) -> torch.Tensor:
    """`policy_features` of each prompt, by its last two layers; ``[P, 2 * hidden + 2]``, float32.

    Changes nothing: modules keep their mode, and no random number is drawn, because there is no dropout.

    Args:
        model: a causal language model, perhaps with adapters, as the trainer calls it.
        prompts: token ids.
        batch_size: prompts per forward pass.
        autocast: makes the context in which the trainer calls the model (``accelerator.autocast``).
    """
    device = next(model.parameters()).device
    found = []
    with _evaluating(model), autocast():
        for start in range(0, len(prompts), batch_size):
            tokens, mask = _right_padded(prompts[start : start + batch_size], device)
            rows, last = torch.arange(len(tokens), device=device), mask.sum(1) - 1
            # Only the logits where some prompt ends, because a vocabulary is wide; through the whole model, because
            # what shards weights (FSDP, DeepSpeed) gathers them there.
            kept, place = torch.unique(last, return_inverse=True)
            seen = model(
                input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False, logits_to_keep=kept
            )
            layers = [seen.hidden_states[-1][rows, last], seen.hidden_states[-2][rows, last]]
            found.append(policy_features(layers, seen.logits[rows, place]))
    return torch.cat(found)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout and gradient checkpointing; every module goes back to the mode that it had."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _right_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and mask. What follows the last token of a prompt is not seen by it, whatever it is."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in prompts], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in prompts], device=device)
    return tokens, mask
