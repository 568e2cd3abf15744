"""A training loop of plain PyTorch and transformers, with planned groups: docs/your-trainer.md explains it.

    python examples/your_trainer.py

A transformer of 8,000 weights learns to answer 64 prompts with a token. To some prompts half of the tokens are right
answers, to others one of 32, to a few none. Its true success rates are read from its probabilities. Seeded: the same
numbers come out every time on one machine.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch.utils._pytree import tree_map_only
from transformers import LlamaConfig, LlamaForCausalLM

from knapsack_rl import AllocationConfig, Session, group_advantages
from knapsack_rl.beliefs.looks import Looks, log_odds
from knapsack_rl.config import RuleName

TOKENS, PROMPTS, PER_STEP, AVERAGE, STEPS = 32, 64, 8, 8, 80
# A prompt is two tokens. Right answers are so many tokens in a row, which begin elsewhere for every prompt.
PROMPT_TOKENS = torch.tensor([[i % 8, 8 + i // 8] for i in range(PROMPTS)])
FIRST = torch.tensor([7 * i for i in range(PROMPTS)])[:, None]
MANY = torch.tensor([(0, 1, 1, 2, 4, 8, 16, 24)[i % 8] for i in range(PROMPTS)])[:, None]
RIGHT = (torch.arange(TOKENS) - FIRST) % TOKENS < MANY


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=TOKENS, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=8, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def log_probs(model: LlamaForCausalLM, prompts: list[int]) -> torch.Tensor:
    """Log-probabilities of the token that follows each prompt, ``[P, TOKENS]``."""
    return model(PROMPT_TOKENS[prompts], use_cache=False).logits[:, -1].log_softmax(-1)


@torch.no_grad()
def success_rates(model: LlamaForCausalLM) -> torch.Tensor:
    """True success rate of every prompt."""
    return (log_probs(model, list(range(PROMPTS))).exp() * RIGHT).sum(-1)


def train(rule: RuleName) -> tuple[float, float, int]:
    """Mean success rate after training, mean share of rollouts in mixed groups, and the largest group."""
    model, random = make_model(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    config = AllocationConfig(rule=rule, average=AVERAGE)
    session, looks = Session(config, steps_per_pass=PROMPTS / PER_STEP), Looks()
    mixed, largest = [], 0
    for step in range(STEPS):
        offered = random.choice(PROMPTS, PER_STEP * (config.pool or 1), replace=False).tolist()

        # 1. Look, if the rule uses it: how sure the policy is of its next token, which most engines tell.
        features = None
        if rule == "calibrated":
            with torch.no_grad():
                features = looks(offered, log_odds(log_probs(model, offered).amax(-1).numpy()))
        # 2. Plan; 3. generate as many rollouts of each prompt as planned.
        plan = session.plan(offered, features=features)
        prompts = [int(prompt_id) for prompt_id, count in plan for _ in range(count)]
        logits = log_probs(model, prompts)
        answers = torch.multinomial(logits.detach().exp(), 1)
        rewards = RIGHT[prompts].gather(1, answers)[:, 0].float()
        # 4. Tell the session what came back; 5. train with advantages of groups that differ in size.
        metrics = session.observe(plan.step, prompts, rewards.numpy())
        advantages = group_advantages(prompts, rewards.numpy(), weighting=config.weighting or "rollout")
        loss = -(torch.from_numpy(advantages).float() * logits.gather(1, answers)[:, 0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        mixed.append(metrics["frac_rollouts_mixed"])
        largest = max(largest, *plan.counts_P.tolist())
        if step == STEPS // 2:  # as if the process had been restarted
            session = restarted(session)
    return float(success_rates(model).mean()), float(np.mean(mixed)), largest


def restarted(session: Session) -> Session:
    """A session from a checkpoint: arrays become tensors, which PyTorch loads without unpickling anything."""
    checkpoint = io.BytesIO()
    torch.save({"knapsack": tree_map_only(np.ndarray, torch.from_numpy, session.state_dict())}, checkpoint)
    checkpoint.seek(0)
    resumed = Session(session.config, steps_per_pass=PROMPTS / PER_STEP)
    resumed.load_state_dict(torch.load(checkpoint, weights_only=True)["knapsack"])
    return resumed


print(f"mean success rate before training: {success_rates(make_model()).mean():.3f}")
print("rule       | after training | rollouts in mixed groups | largest group")
rules: tuple[RuleName, ...] = ("uniform", "beta", "calibrated")
for name in rules:
    rate, share, size = train(name)
    print(f"{name:10} | {rate:14.3f} | {share:24.3f} | {size:13}")
