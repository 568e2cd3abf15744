"""verl's manager and buffers with our hooks, a queue in memory, and workers that answer at once."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
import transfer_queue
import verl.trainer
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from verl.utils import tensordict_utils

from knapsack_rl import BetaBeliefs
from knapsack_rl.verl.buffers import KnapsackReplayBuffer, KnapsackReplayBufferAsync
from knapsack_rl.verl.command import overrides
from knapsack_rl.verl.hooks import KnapsackAgentLoopManager, SaveBeliefs
from knapsack_rl.verl.rows import task_ids
from knapsack_rl.verl.run import SharedRun

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "same_plans.json").read_text())
CONFIGURATION = Path(next(iter(verl.trainer.__path__))) / "config"


def config(*words: str, name: str = "ppo_trainer") -> DictConfig:
    """verl's whole configuration under some overrides, as its command line composes it."""
    with initialize_config_dir(str(CONFIGURATION), version_base=None):
        return compose(name, list(words))


@cache
def refusable() -> DictConfig:
    """A configuration that works; composing one takes seconds."""
    return config("algorithm.adv_estimator=grpo", "actor_rollout_ref.rollout.n=8", *overrides())


def changed(*words: str) -> DictConfig:
    """The configuration of `refusable` with more overrides."""
    base = refusable().copy()
    OmegaConf.set_struct(base, False)
    return DictConfig(OmegaConf.merge(base, OmegaConf.from_dotlist([word.lstrip("+") for word in words])))


# (uid, prompt, planned count) -> the reward of each rollout; None for a rollout that fails.
Answer = Callable[[str, int, int], list[float | None]]


class Queue:
    """TransferQueue's key-value calls, in a dictionary."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tags: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        self.fields: dict[str, dict[str, Any]] = {}
        for name in ("kv_list", "kv_clear", "kv_batch_get", "kv_batch_put"):
            monkeypatch.setattr(transfer_queue, name, getattr(self, name))

    def kv_list(self) -> dict[str, dict[str, dict[str, Any]]]:
        return {partition: dict(tags) for partition, tags in self.tags.items()}

    def kv_clear(self, keys: list[str], partition_id: str) -> None:
        for key in keys:
            self.tags[partition_id].pop(key, None)

    def kv_batch_put(
        self, keys: list[str], partition_id: str, tags: list[dict[str, Any]] | None = None, fields: Any = None
    ) -> None:
        for i, (key, tag) in enumerate(zip(keys, tags or [{}] * len(keys), strict=True)):
            self.tags[partition_id].setdefault(key, {}).update(tag)
            if fields is not None:
                self.fields.setdefault(key, {}).update({name: fields[name][i] for name, _ in fields.items()})

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
        assert all(key in self.tags[partition_id] for key in keys), "asked for what is gone"
        columns = {name: [self.fields[key][name] for key in keys] for name in select_fields}
        tensors = {
            name: torch.nested.as_nested_tensor(values, layout=torch.jagged)
            if isinstance(values[0], torch.Tensor)
            else np.array(values, dtype=object)
            for name, values in columns.items()
        }
        return tensordict_utils.get_tensordict(tensors)


class World:
    """One task runner: its configuration, trainer, hooks, and the agents' answers."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *words: str,
        mode: str = "sync",
        steps_per_epoch: int = 2,
        tags: dict[str, Any] | None = None,
        fields: dict[str, Any] | None = None,
        client: Any = None,
    ) -> None:
        """A task runner at its start.

        ``tags`` and ``fields`` are what verl restores of its queue; without a ``client`` no engine is asked for looks.
        """
        self.queue = Queue(monkeypatch)
        self.queue.tags["train"] |= tags or {}
        self.queue.fields |= fields or {}
        monkeypatch.setattr(ray, "get", lambda futures: futures)
        given = ["actor_rollout_ref.rollout.n=4", f"trainer.default_local_dir={folder}", "+knapsack.rule=beta"]
        given += ["+knapsack.pool=1"] if client else ["+knapsack.pool=1", "+knapsack.ask=False"]
        self.config: DictConfig = changed(*given, *overrides(mode), *words)
        self.steps_per_epoch, self.total_training_steps, self.trainer_mode = steps_per_epoch, 100, mode
        self.train_dataset: Any = None
        self.coming: list[int] = []  # what the data loader gives next
        self.local_trigger_step, self.parameter_sync_step = 0, 1
        self._restored_tq_prompt_count = sum("is_prompt" in tag for tag in (tags or {}).values())
        self.folder, self.requested = folder, list[int]()
        self.tokenizer = SimpleNamespace(decode=lambda tokens: f"<{len(tokens)} tokens>")
        self.refilled: list[int] = []
        self.numbers = itertools.count()
        self.answer: Answer = lambda uid, prompt, count: [1.0] * count
        self.saving = SaveBeliefs(self.config)
        buffer = KnapsackReplayBuffer if mode == "sync" else KnapsackReplayBufferAsync
        self.buffer = buffer(
            trainer_mode=mode,
            trainer_config=self.config.trainer.v1[mode],
            max_off_policy_threshold=2,
            max_off_policy_strategy="drop",
            sampler_kwargs={},
            refill_fn=self.refill,
            poll_interval=0.0,
        )
        self.manager = KnapsackAgentLoopManager(config=self.config, llm_client=client)
        self.manager.agent_loop_workers = [SimpleNamespace(generate_sequences=SimpleNamespace(remote=self.work))] * 2
        self.sent: dict[str, int] = {}
        self.step = 1

    @property
    def run(self) -> SharedRun:
        return SharedRun.get()

    def checkpoint(self, step: int) -> dict[str, Any]:
        """Save as verl does at the end of a step; what it restores of its queue, as arguments of another world."""
        self.run.save(self.folder / f"global_step_{step}")
        (self.folder / "latest_checkpointed_iteration.txt").write_text(str(step))
        return {"tags": dict(self.queue.tags["train"]), "fields": self.queue.fields}

    def _add_prompts_to_generate(self, prompts: int) -> None:
        self.requested.append(prompts)

    def refill(self, prompts: int) -> int:
        self.refilled.append(prompts)
        prepared = self._batch([100 + len(self.refilled) + i for i in range(prompts)])
        tensordict_utils.assign_non_tensor_data(prepared, "global_steps", self.step)
        self.submit(prepared)
        return prompts

    def generate(self, step: int, prompts: list[int], uids: list[str] | None = None, **more: Any) -> None:
        """Prepare and submit a batch as verl's trainer does; with a pool, the rest comes from the data loader."""
        self.step, size = step, len(prompts)
        if not more and not uids and self.run.settings.allocation.pool != 1:
            size //= self.run.settings.allocation.pool or 1
        self.coming = prompts[size:]
        prepared = self._batch(prompts[:size], uids)
        for name, value in {"global_steps": step, **more}.items():
            tensordict_utils.assign_non_tensor_data(prepared, name, value)
        self.submit(prepared)

    def submit(self, prepared: Any) -> None:
        """Register prompts and pass them on, as verl's trainer does."""
        if "validate" not in prepared:
            tags = [{"is_prompt": True, "status": "pending", "global_steps": self.step} for _ in range(len(prepared))]
            self.queue.kv_batch_put(list(prepared["uid"]), "train", tags)
        self.manager.generate_sequences(prepared)

    def _next_train_batch(self, number: int) -> Any:
        """More prompts: those that are coming, then new ones."""
        more, self.coming = self.coming[:number], self.coming[number:]
        more += [200 + next(self.numbers) for _ in range(number - len(more))]
        prepared = self._batch(more)
        tensordict_utils.assign_non_tensor_data(prepared, "global_steps", self.step)
        return prepared

    def _batch(self, prompts: list[int], uids: list[str] | None = None) -> Any:
        columns = rows_of(prompts) | {
            "uid": uids or [f"uid-{self.step}-{next(self.numbers)}-{prompt}-{i}" for i, prompt in enumerate(prompts)]
        }
        batch = {name: np.empty(len(prompts), dtype=object) for name in columns}
        for name, values in columns.items():
            batch[name][:] = values
        return tensordict_utils.get_tensordict(batch)

    def work(self, chunk: Any) -> None:
        """Generate as verl's agent loop workers do, at once."""
        train = "validate" not in chunk
        for i in range(len(chunk)):
            uid, prompt = chunk["uid"][i], int(chunk["index"][i])
            self.sent[uid] = count = int(chunk["__rollout_n__"][i]) if train else -1
            if not train:
                continue
            rewards = self.answer(uid, prompt, count)
            tags = {"global_steps": int(chunk["global_steps"])}
            status = "failure" if None in rewards else "finished"
            assert uid in self.queue.tags["train"], "a group that verl's queue does not know"
            self.queue.tags["train"][uid] |= {"status": status, **tags}
            for session, reward in reversed(list(enumerate(rewards))):  # verl's queue keeps no order
                if reward is not None:
                    row = f"{uid}_{session}_0"
                    self.queue.tags["train"][row] = {"response_len": 2, **tags}
                    said = torch.tensor([1, next(self.numbers)])
                    self.queue.fields[row] = {
                        "rm_scores": torch.tensor([0.0, reward]),
                        "prompts": torch.tensor([7, 7, prompt]),
                        "responses": said,
                        "response_mask": torch.ones_like(said),
                        "rollout_log_probs": -0.01 * said.float(),
                        "knapsack_prompt": chunk["knapsack_prompt"][i],
                    }

    def evidence(self, prompts: list[int]) -> list[float]:
        """Rollouts learned from, by prompt, under a half-life that is never reached."""
        beliefs = self.run.session.allocator.beliefs  # type: ignore[attr-defined]
        assert isinstance(beliefs, BetaBeliefs)
        beliefs.half_life = 1e9
        return [round(float(x), 3) for x in beliefs.forecast(ids_of(prompts), self.step).pseudo_count_P - 1.0]


def rows_of(prompts: list[int]) -> dict[str, list[Any]]:
    """The rows of these prompts in the data set, by column; some have the same text."""
    return {
        "index": prompts,
        "data_source": ["numbers"] * len(prompts),
        "raw_prompt": [GOLDEN["prompts"][prompt % len(GOLDEN["prompts"])] for prompt in prompts],
        "extra_info": [{"index": prompt} for prompt in prompts],
    }


def ids_of(prompts: list[int], by: str = "index") -> list[str]:
    """Stable ids of these prompts."""
    return task_ids(by, 2, rows_of(prompts))


def prompts_of(keys: list[str]) -> list[int]:
    """The prompts of some rows, in order."""
    return [int(uid.split("-")[3]) for uid in dict.fromkeys(key.partition("_")[0] for key in keys)]
