"""The library's share of a step on a model of useful size: looks at the candidates, planning, beliefs, trace.

A few steps of the TRL trainer with its default configuration, SmolLM2-135M on prompts of `reasoning-gym`, all answers
of a fixed length. Shares are those of the report (`Run.allocator_share`), read from the run's trace. Most of it are the
looks, whose share falls with the length of answers, and rises with the speed of generation.

``--looks`` times the looks alone instead, with the shared tokens of all prompts read once and with whole prompts, by
turns: as the chat template has them, and with a longer system prompt.

    python -m benchmarks.overhead [--tokens 64,128,256] [--steps 4] [--prompts 4] [--looks]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine
from knapsack_rl.notation import FloatArray
from knapsack_rl.trace import read_trace

GENERATIONS = 8
# Looks that are timed of each kind.
ROUNDS = 5


def shares(tokens: int, steps: int, prompts: int) -> tuple[FloatArray, int]:
    """Share of each step but the first spent in the library, and the mean prompt length."""
    from knapsack_rl.tasks.models import model_path
    from knapsack_rl.tasks.prompts import as_chat, load_prompts
    from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer

    rng = np.random.default_rng(0)

    def reward(completions: Sequence[Any], **_: Any) -> list[float]:
        return [float(right) for right in rng.random(len(completions)) < 0.4]

    with tempfile.TemporaryDirectory() as folder:
        arguments = KnapsackGRPOConfig(
            output_dir=folder, per_device_train_batch_size=prompts * GENERATIONS, num_generations=GENERATIONS,
            max_completion_length=tokens, generation_kwargs={"min_new_tokens": tokens}, max_steps=steps,
            gradient_checkpointing=False, bf16=False, report_to="none", save_strategy="no", use_cpu=True,
            disable_tqdm=True,
        )  # fmt: skip
        data = as_chat(load_prompts("reasoning-gym:gcd?size=200").train)
        trainer = KnapsackGRPOTrainer(
            model=model_path("smollm2"), reward_funcs=reward, args=arguments, train_dataset=data
        )
        trainer.train()
        clocks = [step.seconds for step in read_trace(Path(folder) / "trace.jsonl").steps[1:]]
        lengths = [len(ids) for ids in trainer._tokenize_prompts(list(data["prompt"]))[0]]
    return np.array([clock["overhead"] / clock["step"] for clock in clocks]), int(np.mean(lengths))


def looks(prompts: int) -> list[tuple[int, int, float, float]]:
    """Shared tokens, tokens of all prompts, seconds of a look at whole prompts and with shared tokens read once."""
    from transformers import AutoModelForCausalLM

    from knapsack_rl.features.policy import hidden_states
    from knapsack_rl.features.shared_prefix import SharedPrefix
    from knapsack_rl.tasks.models import load_tokenizer, model_path
    from knapsack_rl.tasks.prompts import as_chat, load_prompts

    path = model_path("smollm2")
    model = AutoModelForCausalLM.from_pretrained(path).float().eval()
    tokenizer = load_tokenizer(path)
    chats = as_chat(load_prompts("reasoning-gym:gcd?size=200").train)["prompt"][:prompts]
    rows = []
    for words in (0, 500):
        system = [{"role": "system", "content": "Answer in a few words. " * (words // 5)}] if words else []
        ids = [tokenizer.apply_chat_template(system + chat, add_generation_prompt=True)["input_ids"] for chat in chats]
        prefix = SharedPrefix()
        hidden_states(model, ids, prefix=prefix)
        assert prefix.works
        seconds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            hidden_states(model, ids)
            between = time.perf_counter()
            hidden_states(model, ids, prefix=prefix)
            seconds.append((between - began, time.perf_counter() - between))
        whole, once = np.median(seconds, axis=0).tolist()
        rows.append((prefix.tokens(ids, lambda own: own), sum(map(len, ids)), whole, once))
    return rows


def main() -> None:
    """Print a table, a row for each length of answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="64,128,256", help="lengths of answers")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=4, help="prompts per step under equal division")
    parser.add_argument("--looks", action="store_true", help="time the looks alone")
    given = parser.parse_args()
    if given.looks:
        print(f"{machine()}\n\n| shared tokens | tokens of all prompts | whole, s | shared once, s | ratio |")
        print("|---|---|---|---|---|")
        for shared, total, whole, once in looks(4 * given.prompts):
            print(f"| {shared} | {total} | {whole:.2f} | {once:.2f} | {once / whole:.2f} |", flush=True)
        return
    print(f"{machine()}\n\n| tokens of an answer | of a prompt | in the library |")
    print("|---|---|---|")
    for tokens in map(int, given.tokens.split(",")):
        ours, prompt = shares(tokens, given.steps, given.prompts)
        print(f"| {tokens} | {prompt} | {100 * np.median(ours):.2f} % |", flush=True)


if __name__ == "__main__":
    main()
