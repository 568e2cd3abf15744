"""Rollouts that depend on their place alone: row of the whole batch, prompt and step, on whatever process it lies."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch


def answer(place: int, prompt: Sequence[int], step: int) -> list[int]:
    """Two letters or, in odd steps, three: so a kept answer is often longer than those of the step that uses it.

    No end of sequence: it would become more likely in every answer, and so would all answers.
    """
    drawn = blake2b(f"{place} {list(prompt)} {step}".encode(), digest_size=3).digest()
    return [4 + byte % 8 for byte in drawn[: 2 + step % 2]]


def answer_by_place(trainer: Any) -> None:
    """Let the model generate these answers. Not a ``rollout_func``, which kept successes refuse."""

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        first = trainer.accelerator.process_index * len(input_ids)
        prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        answers = [answer(first + i, prompt, trainer.generation_step) for i, prompt in enumerate(prompts)]
        return torch.cat([input_ids, torch.tensor(answers)], dim=1)

    trainer.model.generate = generate
