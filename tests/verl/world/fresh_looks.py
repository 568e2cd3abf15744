"""Recorded looks against plain forward passes of verl's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from knapsack_rl.trace import Trace

# An override: checkpoints hold the model as transformers loads it.
SAVE_MODEL = "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]"


@torch.no_grad()
def log_odds_of(model: Path, tokenizer: Any, texts: list[str]) -> np.ndarray:
    """The logit of the largest softmax of the next token of each prompt, by a plain forward pass."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    best = []
    for text in texts:
        chat = [{"role": "user", "content": text}]
        tokens = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        best.append(float(policy(torch.tensor([tokens])).logits[0, -1].softmax(-1).max()))
    return np.log(np.clip(best, 0.01, 0.99)) - np.log1p(-np.clip(best, 0.01, 0.99))


def assert_looks_are_fresh(folder: Path, trace: Trace, least: int) -> None:
    """The recorded look of every candidate is that of the policy's latest weights, where verl has saved these.

    A plan of step s (from 0) is made when s updates are done, in every mode. At least ``least`` plans must tell weights
    apart: their looks are not those of the checkpoint before.
    """
    telling, last, tokenizer = 0, None, AutoTokenizer.from_pretrained(folder / "model")
    for step in trace.steps:
        updates = step.plan.step
        saved = folder / "checkpoints" / f"global_step_{updates}" / "actor" / "huggingface"
        model = saved if updates else folder / "model"
        if not model.exists():
            continue
        assert step.log_odds_P is not None
        texts = [trace.texts[prompt_id].removeprefix("user: ") for prompt_id in step.plan.prompt_ids]
        expected = log_odds_of(model, tokenizer, texts)
        assert np.abs(step.log_odds_P - expected).max() < 0.0101, f"step {updates}"  # rounded to .01
        if last not in (None, model):
            telling += np.abs(step.log_odds_P - log_odds_of(last, tokenizer, texts)).max() > 0.05
        last = model
    assert telling >= least
