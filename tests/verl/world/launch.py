"""verl's own command, in the environment of this package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPTS_A_STEP, AVERAGE = 8, 4

ENVIRONMENT = {
    "VERL_USE_EXTERNAL_MODULES": "world.plugin",
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",  # the name under which verl keeps its FSDP engine
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # otherwise the workers wait for other processes of the machine
    "RAY_prestart_worker_first_driver": "0",  # verl's actors have another environment, and use none of these
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "HYDRA_FULL_ERROR": "1",
}


@dataclass
class Training:
    """One training run; ``start`` resumes it after a kill."""

    folder: Path
    workers: int = 1
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder / "verl.log"

    @property
    def trace(self) -> Path:
        return self.folder / "checkpoints" / "trace.jsonl"

    def command(self) -> list[str]:
        from knapsack_rl.verl.command import overrides

        ours = overrides(**{"max_n": 12} | self.settings)
        mode = next((word for word in self.overrides if word.startswith("trainer.v1.trainer_mode=")), "sync")
        fast = ["trainer.v1.sampler.custom_sampler.path=pkg://world.watched"]
        fast += [
            "trainer.v1.sampler.custom_sampler.name=" + ("FastBuffer" if "async" not in mode else "FastBufferAsync")
        ]
        return [sys.executable, "-m", "verl.trainer.main_ppo", *ours, *fast, *self._settings(), *self.overrides]

    def start(self) -> subprocess.Popen[bytes]:
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        world = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "WORLD_FOLDER": str(self.folder)}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=os.environ | ENVIRONMENT | world | self.environment,
                start_new_session=True,  # so that a kill reaches all that Ray started
            )

    def run(self, timeout: float = 400.0) -> None:
        """Train to the end."""
        process = self.start()
        try:
            code = process.wait(timeout)
        finally:
            kill(process)
        assert code == 0, f"verl ended with {code}:\n{self.log.read_text(errors='replace')[-6000:]}"

    def run_until(self, enough: Callable[[], bool], timeout: float = 400.0) -> None:
        """Train until ``enough`` returns true, then SIGKILL the driver and everything it started."""
        process = self.start()
        try:
            end = time.monotonic() + timeout
            while not enough():
                assert process.poll() is None, f"verl ended:\n{self.log.read_text(errors='replace')[-6000:]}"
                assert time.monotonic() < end, "nothing happened"
                time.sleep(0.1)
        finally:
            kill(process)

    def _settings(self) -> list[str]:
        actor, rollout, model = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
        return [
            "algorithm.adv_estimator=grpo",
            f"data.train_files={self.folder}/train.parquet",
            f"data.val_files={self.folder}/val.parquet",
            f"data.train_batch_size={PROMPTS_A_STEP}",
            "data.max_prompt_length=32",
            "data.max_response_length=1",
            "data.dataloader_num_workers=0",
            "data.seed=1",
            f"{model}.path={self.folder}/model",
            f"+{model}.override_config.attn_implementation=sdpa",
            f"{model}.use_remove_padding=False",
            f"{model}.enable_gradient_checkpointing=False",
            f"{actor}.strategy=fsdp2",
            f"{actor}.ppo_mini_batch_size={PROMPTS_A_STEP}",
            f"{actor}.ppo_micro_batch_size_per_gpu=16",
            f"{actor}.use_dynamic_bsz=False",
            f"{actor}.use_torch_compile=False",
            f"{actor}.fsdp_config.use_torch_compile=False",
            f"{actor}.use_kl_loss=False",
            f"+{actor}.fsdp_config.mixed_precision.param_dtype=fp32",
            f"+{actor}.fsdp_config.mixed_precision.reduce_dtype=fp32",
            f"{actor}.optim.lr=1e-2",
            f"{rollout}.name=hf_cpu",
            f"{rollout}.n={AVERAGE}",
            f"{rollout}.tensor_model_parallel_size=1",
            f"{rollout}.log_prob_micro_batch_size_per_gpu=16",
            f"{rollout}.agent.num_workers=1",
            f"trainer.n_gpus_per_node={self.workers}",
            "trainer.nnodes=1",
            "trainer.device=cpu",
            "trainer.logger=[console]",
            "trainer.val_before_train=False",
            "trainer.test_freq=-1",
            "trainer.total_epochs=100",
            f"trainer.default_local_dir={self.folder}/checkpoints",
            f"reward.custom_reward_function.path={Path(__file__).parent}/reward.py",
            "reward.custom_reward_function.name=compute_score",
            "reward.num_workers=1",
            "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
            "+ray_kwargs.ray_init.address=local",  # a separate cluster
            "ray_kwargs.ray_init.num_cpus=16",
            f"+ray_kwargs.ray_init.num_gpus={self.workers}",
            f"+ray_kwargs.ray_init.object_store_memory={256 << 20}",
            "+ray_kwargs.ray_init.include_dashboard=False",
        ]


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver; Ray's processes follow, or are killed with its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
