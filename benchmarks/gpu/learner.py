"""One optimizer for both kinds of training: weighted cross entropy of answers, in parts that fit the memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from benchmarks.gpu.llama import Llama, Tokens

# Tokens of a part, padding included: about 8 GB for 135 million weights and a vocabulary of 49,152.
PART = 6144


class Learner:
    """AdamW on a model's float32 weights."""

    def __init__(self, model: Llama, learning_rate: float) -> None:
        """An optimizer without memory; gradients are clipped to norm 1."""
        self.model = model
        self._masters = list(model.masters.values())
        self._weights = list(model.weights.values())
        for weight in self._masters:
            weight.grad = torch.zeros_like(weight)
        self._gradients = [weight.grad for weight in self._masters]
        self.optimizer = torch.optim.AdamW(
            self._masters, learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    def step(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], factors: Sequence[float], over: int
    ) -> torch.Tensor:
        """Take one step on the sum of the rows' losses, each times its factor, over a number of tokens.

        Args:
            prompts, answers: tokens of each row.
            factors: of each row; a row of factor 0 is not computed.
            over: what the sum is divided by.

        Returns:
            The loss, on the device.
        """
        torch._foreach_zero_(self._gradients)
        total = torch.zeros((), device=self.model.device)
        for rows in _parts([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)], factors):
            losses, row = self.model.losses([prompts[i] for i in rows], [answers[i] for i in rows])
            factor = torch.tensor([factors[i] for i in rows], device=self.model.device, dtype=torch.float32)
            loss = (losses * factor[row]).sum() / over
            # Gradients of parts are summed in float32.
            gradients = torch.autograd.grad(loss, self._weights)
            torch._foreach_add_(self._gradients, [gradient.float() for gradient in gradients])
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        self.optimizer.step()
        self.model.refresh()
        return total

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use another learning rate from the next step on."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


def _parts(lengths: Sequence[int], factors: Sequence[float]) -> Iterator[list[int]]:
    """Rows with a factor, the shortest first, in parts of at most `PART` tokens, padding included."""
    part: list[int] = []
    for row in sorted((i for i, factor in enumerate(factors) if factor), key=lambda i: lengths[i]):
        if part and (len(part) + 1) * lengths[row] > PART:
            yield part
            part = []
        part.append(row)
    if part:
        yield part
