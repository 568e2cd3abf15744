"""`knapsack-rl features`: a file of what the base model's hidden states say of each prompt.

For engines that show no hidden states (verl, Tinker): states of the base model tell prompts apart as well as those of
the policy, so they are computed once, before the run. Prompts are found by their words, as a text or as a chat.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from knapsack_rl.console.arguments import file_name, whole_number

# Prompts between two lines of progress, which also bounds memory.
BLOCK: Final = 1024

EXAMPLES = """
examples:
  knapsack-rl features --model Qwen/Qwen2.5-0.5B --dataset train.parquet --output looks.npz
  python -m verl.trainer.main_ppo ... $(knapsack-rl verl-args --features looks.npz)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="the model that training begins with: a folder, or a hub id"
    )
    parser.add_argument(
        "--dataset",
        required=True,
        nargs="+",
        metavar="NAME",
        help="the prompts: .parquet, .jsonl, .json or .csv files, or hub ids",
    )
    parser.add_argument("--output", required=True, type=file_name, metavar="FILE", help="the file to write (.npz)")
    parser.add_argument("--dataset-split", default="train", metavar="NAME", help="split of a hub data set")
    parser.add_argument("--prompt-column", default="prompt", metavar="NAME", help="column of the prompts")
    parser.add_argument("--chat", action="store_true", help="a prompt that is a text is what the user says in a chat")
    parser.add_argument(
        "--longest", type=whole_number(1), default=2048, metavar="N", help="tokens of a prompt that are read, its last"
    )
    parser.add_argument("--device", metavar="NAME", help="torch's name of a device (default: cuda, if there is one)")


def run(arguments: argparse.Namespace) -> int:
    """Read the prompts, pass them through the model, write the file.

    Raises:
        TaskError, OSError, ModuleNotFoundError: what cannot be read or written, in one line.
    """
    from knapsack_rl.beliefs.looks import Looks
    from knapsack_rl.features.policy import as_prompt_features, hidden_states
    from knapsack_rl.features.shared_prefix import SharedPrefix
    from knapsack_rl.features.text import prompt_key
    from knapsack_rl.tasks.models import load_tokenizer, model_path
    from knapsack_rl.tasks.prompts import load_prompts

    began = time.perf_counter()
    if not arguments.output.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {arguments.output.absolute().parent} to write to")
    if arguments.output.is_dir():
        raise IsADirectoryError(f"{arguments.output} is a folder: name a file")
    prompts: dict[str, Any] = {}
    for source in arguments.dataset:
        found = load_prompts(source, split=arguments.dataset_split, prompt_column=arguments.prompt_column)
        prompts.update((prompt_key(prompt), prompt) for prompt in found.train["prompt"])
    path = model_path(arguments.model)
    tokenizer, model = load_tokenizer(path), _model(path, arguments.device)
    looks, prefix = Looks(source=arguments.model, capacity=len(prompts)), SharedPrefix()
    for keys in _blocks(list(prompts)):
        tokens = [_tokens(tokenizer, prompts[key], arguments.chat)[-arguments.longest :] for key in keys]
        states_P_F = as_prompt_features(hidden_states(model, tokens, prefix=prefix).cpu().numpy()).features_P_F
        looks.remember(keys, states_P_F)
        print(f"{len(looks):,} of {len(prompts):,} prompts", file=sys.stderr)
    looks.save(arguments.output)
    size, seconds = arguments.output.stat().st_size / 1e6, time.perf_counter() - began
    print(f"{arguments.output}: {len(looks):,} prompts, {size:.1f} MB, {seconds:.0f} s")
    return 0


def _model(path: str, device: str | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from knapsack_rl.tasks import TaskError

    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError) as error:
        raise TaskError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error
    try:
        # On a CPU 16 bits are slower, and not all kernels have them.
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32 if place.type == "cpu" else "auto")
    except (OSError, ValueError) as error:
        raise TaskError(f"cannot load the model {path!r}: {str(error).strip().splitlines()[0]}") from error
    return model.to(place).eval()


def _tokens(tokenizer: Any, prompt: Any, chat: bool) -> list[int]:
    """The tokens that a policy answers to.

    Raises:
        TaskError: a chat, and a tokenizer without a template for it.
    """
    from knapsack_rl.tasks import TaskError

    if isinstance(prompt, str) and not chat:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])
    except ValueError as error:
        raise TaskError(f"the prompts are chats, and the tokenizer cannot write them: {error}") from error


def _blocks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), BLOCK):
        yield keys[start : start + BLOCK]
