"""Loaded in every process of verl (VERL_USE_EXTERNAL_MODULES): a CPU platform, and a rollout engine from hf_rollout.

Real in such a run: Ray, verl's task runner and trainer, TransferQueue, agent and reward loops, FSDP2 on gloo, the
transfer of weights, balancing, padding, checkpoints. Not real: CUDA, NCCL, flash-attention, vLLM.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.workers.rollout import base, replica


class _CpuDevice(types.ModuleType):
    """Stands in for torch.cuda."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if hasattr(torch.cpu, name):
            return getattr(torch.cpu, name)
        return lambda *args, **kwargs: 0  # memory in use

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> str:
        return "cpu"

    def set_device(self, device: Any) -> None:
        pass

    def get_device_name(self, *args: Any) -> str:
        return "CPU"

    def mem_get_info(self, *args: Any) -> tuple[int, int]:
        return 8 << 30, 16 << 30

    def get_rng_state(self, *args: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, *args: Any) -> None:
        torch.set_rng_state(state)


_DEVICE = _CpuDevice("cpu_device")


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: _DEVICE)

    def is_available(self) -> bool:
        return True

    def current_device(self) -> str:
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"  # a logical one, declared on the command line

    def ray_noset_envvars(self) -> list[str]:
        return []

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


_init_process_group = torch.distributed.init_process_group


def _init_on_gloo(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
    """verl names one backend for the device and one for the CPU; torch refuses the same one twice."""
    return _init_process_group("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)


torch.distributed.init_process_group = _init_on_gloo


def _load_replica() -> Any:
    from world.hf_rollout import HFReplica

    return HFReplica


base._ROLLOUT_REGISTRY[("hf_cpu", "async")] = "world.hf_rollout.ServerAdapter"
replica.RolloutReplicaRegistry.register("hf_cpu", _load_replica)
