"""verl's replay buffers, which pass every group that leaves them to the run, whether it is trained on or not."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import transfer_queue as tq
from tensordict import NonTensorData
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from knapsack_rl.metrics import best_and_worst
from knapsack_rl.verl.kept import use_kept
from knapsack_rl.verl.rows import PROMPT_FIELD
from knapsack_rl.verl.run import Rollout, SharedRun
from knapsack_rl.verl.settings import ConfigError, select

_TRAIN = "train"

# The type of the mixin's base; at run time it has none, so that it fits both of verl's buffers.
_Base: Any = ReplayBuffer if TYPE_CHECKING else object

# Tags of rows by key, <uid>_<number in the group>_<output>: agents may return several rows for one rollout.
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
        self.run.trainer = kwargs["refill_fn"].__self__  # verl passes one of its trainer's methods
        self.metrics: dict[str, float] = {}
        self.kept: dict[str, float] = {}  # metrics of kept successes
        self.optimizer_step = 0
        if self.synchronous:  # verl passes these to its own buffers alone
            refill = bool(select(self.run.config, "trainer.v1.sampler.sync_refill_failed_groups"))
            kwargs |= {"sync_refill_failed_groups": refill, "gen_batch_size": 1 if refill else None}
        super().__init__(**kwargs)

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> Any:
        """Sample as verl does, and add our metrics to those it returns."""
        self.optimizer_step = global_steps - 1
        if partition_id == _TRAIN and self.synchronous and self.run.leaves_out:
            # All groups of the plan, in as many parts as verl asks for.
            parts = self.run.trainer.parameter_sync_step - self.run.trainer.local_trigger_step
            batch_size = math.ceil(len(self.run.planned) / parts)
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        self.run.owed = 0  # groups that verl has dropped and not asked to replace
        if partition_id == _TRAIN:
            own = self.run.looked | self.kept | self.metrics
            metrics.update({f"knapsack/{name}": value for name, value in own.items()})
            self.metrics, self.kept = {}, {}
            trainer = self.run.trainer
            if trainer.local_trigger_step + 1 == trainer.parameter_sync_step:
                self.run.step_learned(global_steps)
        return batch, metrics

    # A group that lost some of its rollouts is kept as a smaller group: large groups lose some more often, and dropping
    # them whole would remove most from the prompts that were allocated most.
    def _sync_metadata_from_transfer_queue(self) -> None:
        super()._sync_metadata_from_transfer_queue()
        if not self.failure_keys[_TRAIN] or self.run.stock:
            return
        keys = _by_uid(self.partitions[_TRAIN])
        partial = {uid for uid in self.failure_keys[_TRAIN] if len(_last_outputs(keys[uid])) >= 2}
        self.failure_keys[_TRAIN] -= partial
        self.finished_keys[_TRAIN] |= partial

    # Asynchronous batches have the rollouts that verl's mini-batches divide, and never more: rows that are too many
    # are a mini-batch of their own, with a whole optimizer update. Where some lack, verl pads with rows of weight 0.
    def _select_prompt_uids(self, partition_id: str, sampleable_keys: Collection[str], batch_size: int) -> Any:
        ordered = sorted(sampleable_keys, key=self.run.order)  # verl's own sort, by step, keeps the order of equals
        if partition_id != _TRAIN or self.synchronous or self.run.stock:
            return super()._select_prompt_uids(partition_id, ordered, batch_size)
        uids, *snapshots = super()._select_prompt_uids(partition_id, ordered, len(ordered))
        chosen = earliest_within([self.run.rollouts([uid]) for uid in uids], self._due(batch_size))
        return [uids[i] for i in chosen], *snapshots

    def _due(self, batch_size: int) -> int:
        """Rollouts that a batch of so many prompts has."""
        return batch_size * self.run.settings.allocation.average

    # Here groups leave to be trained on, in the order of the plan, so that a resumed run can be the same to the bit.
    # Groups of one row are left out: verl would use their raw reward as advantage.
    def _materialize_batch(self, partition_id: str, selected_prompt_uids: list[str], partition_snapshot: Any) -> Any:
        if partition_id == _TRAIN:
            uids = sorted(selected_prompt_uids, key=self.run.order)
            keys = _by_uid(partition_snapshot)
            self._check_weighting(uids, keys)
            learned = self._learn(uids, partition_snapshot)
            if self.run.kept is not None:
                partition_snapshot = dict(partition_snapshot)
                rows = [row for row in learned if len(_last_outputs(keys[row[1].uid])) == len(keys[row[1].uid])]
                threshold = self.run.session.success_threshold
                self.kept = use_kept(self.run.kept, rows, threshold, partition_snapshot)
                self.run.session.record_kept(self.optimizer_step, self.kept)
            alone = {uid for uid in uids if len(_last_outputs(keys[uid])) == 1 and not self.run.stock}
            if alone:
                tq.kv_clear(partition_id=partition_id, keys=[key for uid in alone for key in keys[uid]])
            partition_snapshot = {key: partition_snapshot[key] for uid in uids if uid not in alone for key in keys[uid]}
            if alone and not partition_snapshot:
                raise RuntimeError(
                    f"of all {len(uids)} groups of this batch only one rollout came back, or none: there is nothing to "
                    "compare it with. The errors of the engine or the agent are further up"
                )
        return super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)

    # Whether an agent returns several rows for one rollout is known only when rows are there.
    def _check_weighting(self, uids: Sequence[str], keys: Mapping[str, Sequence[str]]) -> None:
        if self.run.settings.allocation.weighting == "prompt":
            for uid in uids:
                if len(_last_outputs(keys[uid])) < len(keys[uid]):
                    self.run.weigh_by_rollout(
                        "group_weighting is prompt, which counts rows, and this agent loop returns several for one "
                        f"rollout ({', '.join(keys[uid][:3])}, ...)"
                    )
                    return

    # Here groups leave unused: stale, or replaced because all their rollouts failed.
    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        if partition_id == _TRAIN and uids:
            self.run.owed += self.run.rollouts(uids)  # others are generated in their place, of as many rollouts
            self._learn(uids, self.partitions[partition_id])
        super()._clear_groups(partition_id, uids)

    def _learn(self, uids: Collection[str], tags: Tags) -> list[tuple[str, Rollout]]:
        """Learn from these groups; their rollouts that came back, each with the key of its last row."""
        by_uid = _by_uid(tags)
        keys = [key for uid in uids for key in _last_outputs(by_uid.get(uid, []))]
        rollouts: list[Rollout] = []
        if keys:
            data = tq.kv_batch_get(keys=keys, partition_id=_TRAIN, select_fields=["rm_scores", PROMPT_FIELD])
            columns = zip(keys, column(data, PROMPT_FIELD), data["rm_scores"].unbind(), strict=True)
            rollouts = [
                Rollout(
                    uid=_uid(key),
                    prompt_id=prompt_id,
                    step=self.run.step(_uid(key), int(tags[key]["global_steps"])),
                    reward=float(scores.sum()),
                    tokens=int(tags[key]["response_len"]),
                )
                for key, prompt_id, scores in columns
            ]
        learned = self.run.learn(uids, rollouts, self.optimizer_step, self._samples(keys, rollouts))
        self.metrics = learned or self.metrics
        return list(zip(keys, rollouts, strict=True))

    def _samples(self, keys: Sequence[str], rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
        """The best and the worst response of the largest group."""
        if self.run.session.trace is None or not rollouts:
            return []
        largest = Counter(rollout.uid for rollout in rollouts).most_common(1)[0][0]
        rows = [i for i, rollout in enumerate(rollouts) if rollout.uid == largest]
        chosen = [rows[i] for i in best_and_worst([rollouts[i].reward for i in rows])]
        data = tq.kv_batch_get(keys=[keys[i] for i in chosen], partition_id=_TRAIN, select_fields=["responses"])
        decode = self.run.trainer.tokenizer.decode
        return [
            {"id": rollouts[i].prompt_id, "completion": decode(tokens.tolist()), "reward": rollouts[i].reward}
            for i, tokens in zip(chosen, data["responses"].unbind(), strict=True)
        ]


class KnapsackReplayBuffer(_Learning, ReplayBuffer):  # type: ignore[misc]  # verl ships no types
    """For ``trainer.v1.trainer_mode=sync``."""

    synchronous = True


class KnapsackReplayBufferAsync(_Learning, ReplayBufferAsync):  # type: ignore[misc]  # verl ships no types
    """For ``trainer.v1.trainer_mode=colocate_async`` and ``separate_async``."""

    synchronous = False

    def wait_for_sampleable(self, global_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Wait as verl does; groups that leave the buffer meanwhile are learned as of this step."""
        self.optimizer_step = global_steps - 1
        return super().wait_for_sampleable(global_steps, *args, **kwargs)

    # A batch is full when it has the rollouts of as many prompts as verl asks for.
    def _has_enough_samples(
        self, global_steps: int, partition_id: str, batch_size: int, sampleable_keys: Collection[str]
    ) -> bool:
        if partition_id != _TRAIN or self.run.stock:
            return bool(super()._has_enough_samples(global_steps, partition_id, batch_size, sampleable_keys))
        if not super()._has_enough_samples(global_steps, partition_id, min(batch_size, 1), sampleable_keys):
            return False
        coming = self.pending_keys[_TRAIN] | self.running_keys[_TRAIN]
        return not coming or self.run.rollouts(sampleable_keys) >= self._due(batch_size)

    def get_sampleable_count(self, global_steps: int, partition_id: str) -> int:
        """Prompts that verl can sample: as many as the planned rollouts stand for."""
        count = int(super().get_sampleable_count(global_steps, partition_id))
        if partition_id != _TRAIN or self.run.stock:
            return count
        keys = self._sampleable_terminal_keys(partition_id, self._terminal_eviction_reasons(global_steps, partition_id))
        return int(self.run.rollouts(keys) // self.run.settings.allocation.average)


def earliest_within(sizes: Sequence[int], most: int) -> list[int]:
    """Places of the groups with the largest sum of rollouts up to ``most``; of equal sums that of the earliest groups.

    The first group alone if every group has more.
    """
    # Bit s of the i-th number: whether some of the groups from the i-th on sum to s.
    within, sums = (1 << (most + 1)) - 1, [1]
    for size in reversed(sizes):
        sums.append((sums[-1] | sums[-1] << size) & within)
    sums.reverse()
    left, chosen = sums[0].bit_length() - 1, list[int]()
    for i, size in enumerate(sizes):
        if size <= left and sums[i + 1] >> (left - size) & 1:
            chosen.append(i)
            left -= size
    return chosen or [0]


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
    """The last row of each rollout: it holds the reward, which earlier outputs repeat."""
    return list({key.rpartition("_")[0]: key for key in keys}.values())
