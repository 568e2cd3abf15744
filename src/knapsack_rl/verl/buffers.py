"""verl's replay buffers, and what is learned from every group that leaves them, trained on or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import transfer_queue as tq
from tensordict import NonTensorData
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from knapsack_rl.session import best_and_worst
from knapsack_rl.verl.run import Group
from knapsack_rl.verl.settings import ConfigError, select
from knapsack_rl.verl.shared import SharedRun

# A column of ours that travels with a prompt's rollouts, also through a checkpoint of rollouts under way.
PROMPT_FIELD = "knapsack_prompt"

_TRAIN = "train"

# What the mixin is mixed into; at run time it has no base, so that it fits both of verl's buffers.
_Base: Any = ReplayBuffer if TYPE_CHECKING else object

# A rollout is known by its key, <uid>_<number in the group>_<output>: agents may put out several rows for one rollout.
Tags = Mapping[str, Mapping[str, Any]]


class _Learning(_Base):  # type: ignore[misc]  # verl ships no types
    synchronous: bool

    def __init__(self, **kwargs: Any) -> None:
        self.run = SharedRun.get()
        if (kwargs["trainer_mode"] == "sync") is not self.synchronous:
            raise ConfigError(
                f"custom_sampler.name={type(self).__name__} does not fit trainer.v1.trainer_mode="
                f"{kwargs['trainer_mode']}: take KnapsackReplayBuffer for sync, or else KnapsackReplayBufferAsync"
            )
        self.run.trainer = kwargs["refill_fn"].__self__  # verl hands its buffers no trainer, but one of its methods
        self.metrics: dict[str, float] = {}
        self.optimizer_step = 0
        if self.synchronous:  # verl passes these to its own buffers only
            refill = bool(select(self.run.config, "trainer.v1.sampler.sync_refill_failed_groups"))
            kwargs |= {"sync_refill_failed_groups": refill, "gen_batch_size": 1 if refill else None}
        super().__init__(**kwargs)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        """Sample as verl does; our metrics join those it returns."""
        self.optimizer_step, self.metrics = global_steps - 1, {}
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        if partition_id == _TRAIN:
            metrics.update({f"knapsack/{name}": value for name, value in self.metrics.items()})
            trainer = self.run.trainer
            if trainer.local_trigger_step + 1 == trainer.parameter_sync_step:
                self.run.step_learned(global_steps)
        return batch, metrics

    # A group that lost some of its rollouts is a smaller group and not a failed one: large groups lose some more often,
    # and to drop them whole would starve the very prompts that were given most.
    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        if not self.failure_keys[_TRAIN]:
            return
        keys = _by_uid(self.partitions[_TRAIN])
        partial = {uid for uid in self.failure_keys[_TRAIN] if len(_last_outputs(keys[uid])) >= 2}
        self.failure_keys[_TRAIN] -= partial
        self.finished_keys[_TRAIN] |= partial

    # Whole plans go together where they can, because it is they that sum to what verl's mini-batches divide by.
    def _select_prompt_uids(self, partition_id: str, sampleable_keys: Collection[str], batch_size: int) -> Any:
        ordered = sorted(sampleable_keys, key=self.run.order)  # verl's own sort, by step, keeps the order of equals
        return super()._select_prompt_uids(partition_id, ordered, batch_size)

    # Here groups leave to be trained on. A lone row stays out: verl would take its raw reward for its advantage. The
    # rest go in the order of the plan, not in that of arrival, so that a resumed run can be the same to the bit.
    def _materialize_batch(self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: Any) -> Any:
        if partition_id == _TRAIN:
            uids = sorted(selected_prompt_uids, key=self.run.order)
            keys = _by_uid(partition_snapshot)
            self._check_weighting(uids, keys)
            self._learn(uids, partition_snapshot)
            alone = {uid for uid in uids if len(_last_outputs(keys[uid])) == 1}
            if alone:
                tq.kv_clear(partition_id=partition_id, keys=[key for uid in alone for key in keys[uid]])
            partition_snapshot = {key: partition_snapshot[key] for uid in uids if uid not in alone for key in keys[uid]}
        return super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)

    # An agent shows only now that it puts out several rows for one rollout.
    def _check_weighting(self, uids: Sequence[str], keys: Mapping[str, Sequence[str]]) -> None:
        if self.run.settings.group_weighting == "prompt":
            for uid in uids:
                if len(_last_outputs(keys[uid])) < len(keys[uid]):
                    raise ConfigError(
                        "knapsack.group_weighting=prompt counts rows, and this agent loop puts out several for one "
                        f"rollout ({', '.join(keys[uid][:3])}, ...): use group_weighting=rollout"
                    )

    # Here groups leave unused: stale, or replaced because nothing of use came back.
    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        if partition_id == _TRAIN and uids:
            self._learn(uids, self.partitions[partition_id])
        super()._clear_groups(partition_id, uids)

    def _learn(self, uids: Collection[str], tags: Tags) -> None:
        by_uid = _by_uid(tags)
        keys = {uid: _last_outputs(by_uid[uid]) for uid in uids}
        rows = [key for uid in uids for key in keys[uid]]
        rewards: dict[str, float] = {}
        prompts: dict[str, str] = {}
        if rows:
            data = tq.kv_batch_get(keys=rows, partition_id=_TRAIN, select_fields=["rm_scores", PROMPT_FIELD])
            rewards = {key: float(row.sum()) for key, row in zip(rows, data["rm_scores"].unbind(), strict=True)}
            prompts = dict(zip(map(_uid, rows), column(data, PROMPT_FIELD), strict=True))
        groups = [
            Group(
                uid=uid,
                prompt_id=prompts.get(uid, ""),
                step=int(tags[keys[uid][0]]["global_steps"]) - 1 if keys[uid] else 0,
                rewards=[rewards[key] for key in keys[uid]],
                tokens=[int(tags[key]["response_len"]) for key in keys[uid]],
            )
            for uid in uids
        ]
        learned = self.run.learn(groups, self.optimizer_step, self._samples(groups, keys))
        self.metrics = learned or self.metrics

    def _samples(self, groups: Sequence[Group], keys: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        """The best and the worst response of the largest group: enough to see what is being learned."""
        largest = max(groups, key=lambda group: len(group.rewards))
        if self.run.session.trace is None or not largest.rewards:
            return []
        chosen = best_and_worst(largest.rewards)
        rows = [keys[largest.uid][i] for i in chosen]
        data = tq.kv_batch_get(keys=rows, partition_id=_TRAIN, select_fields=["responses"])
        decode = self.run.trainer.tokenizer.decode
        return [
            {"id": largest.prompt_id, "completion": decode(tokens.tolist()), "reward": largest.rewards[i]}
            for i, tokens in zip(chosen, data["responses"].unbind(), strict=True)
        ]


class KnapsackReplayBuffer(_Learning, ReplayBuffer):  # type: ignore[misc]  # verl ships no types
    """For ``trainer.v1.trainer_mode=sync``."""

    synchronous = True


class KnapsackReplayBufferAsync(_Learning, ReplayBufferAsync):  # type: ignore[misc]  # verl ships no types
    """For ``trainer.v1.trainer_mode=colocate_async`` and ``separate_async``."""

    synchronous = False


def column(data: Any, name: str) -> list[Any]:
    """A column of a batch, one plain value for each row."""
    if name not in data:
        raise ConfigError(f"the batch has no column {name!r}: it has {', '.join(map(str, data.keys()))}")
    value = data.get(name)
    if isinstance(value, NonTensorData):
        return [value.data] * len(data)
    return value.tolist() if hasattr(value, "tolist") else list(value)


def _uid(key: str) -> str:
    return key.partition("_")[0]


def _by_uid(keys: Iterable[str]) -> dict[str, list[str]]:
    """The rows of each group, in the order of rollouts and outputs."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted(keys, key=lambda key: [int(part) for part in key.split("_")[1:]]):
        groups[_uid(key)].append(key)
    return groups


def _last_outputs(keys: Iterable[str]) -> list[str]:
    """The row with the last word of each rollout: it holds the reward, and earlier outputs repeat it."""
    return list({key.rpartition("_")[0]: key for key in keys}.values())
