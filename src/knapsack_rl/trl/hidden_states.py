"""What the policy itself thinks of a prompt before it answers: the best features of prompts that we know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from knapsack_rl.notation import FloatArray


class HiddenStates:
    """Features of the candidates of the present step, for `CalibratedBeliefs`; the trainer fills them in.

    They are not part of a checkpoint: a resumed run computes them anew, from the same weights.
    """

    def __init__(self) -> None:
        """Nothing known yet."""
        self._row_of: dict[str, int] = {}
        self._states_P_F: FloatArray | None = None

    def fill(self, prompt_ids: Sequence[str], states_P_F: FloatArray) -> None:
        """From here on these prompts look like this, ``[P, F]``, and no others are known."""
        self._row_of = {prompt_id: row for row, prompt_id in enumerate(prompt_ids)}
        self._states_P_F = states_P_F

    def __call__(self, prompt_ids: Sequence[str]) -> FloatArray:
        """Features of prompts, ``[P, F]``.

        Raises:
            ValueError: a prompt that is no candidate of the present step.
        """
        for prompt_id in prompt_ids:
            if prompt_id not in self._row_of:
                raise ValueError(
                    f"the hidden states of prompt {prompt_id!r} are not known: only those of the present step's "
                    "candidates are kept"
                )
        assert self._states_P_F is not None
        found: FloatArray = self._states_P_F[[self._row_of[prompt_id] for prompt_id in prompt_ids]]
        return found


@torch.no_grad()
def hidden_states(model: Any, prompts: Sequence[Sequence[int]], batch_size: int, autocast: Any) -> torch.Tensor:
    """The last two layers at the last token of each prompt, each with root mean square 1; ``[P, 2 * hidden]``, float32.

    Changes nothing: modules keep their mode, and no random number is drawn, because there is no dropout.

    Args:
        model: a causal language model, perhaps with adapters, as the trainer calls it.
        prompts: token ids.
        batch_size: prompts per forward pass.
        autocast: makes the context in which the trainer calls the model (``accelerator.autocast``).
    """
    device = next(model.parameters()).device
    states = []
    with _evaluating(model), autocast():
        for start in range(0, len(prompts), batch_size):
            tokens, mask = _right_padded(prompts[start : start + batch_size], device)
            # One logit, because the head cannot be switched off; through the whole model, because what shards weights
            # (FSDP, DeepSpeed) gathers them there.
            layers = model(
                input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False, logits_to_keep=1
            ).hidden_states
            rows, last = torch.arange(len(tokens), device=device), mask.sum(1) - 1
            ends = [layer[rows, last].float() for layer in (layers[-1], layers[-2])]
            # Before the final norm layers differ in size tenfold.
            states.append(torch.cat([end / end.pow(2).mean(1, keepdim=True).sqrt() for end in ends], dim=1))
    return torch.cat(states)


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
