"""Kept successes in verl: a prompt's last right answer replaces a rollout of a group that failed as a whole.

A row of verl's queue is fields under a key, and verl's trainer itself adds and overwrites fields of rows. So the fields
of a failed rollout are overwritten when its group leaves the replay buffer, before anything has read them. verl then
computes log-probabilities under the present policy as for every row; those of the engine are the kept ones, which is
what its rollout correction needs (docs/value.md says what a kept rollout biases).
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from knapsack_rl.kept import KeptSuccess, KeptSuccesses, failed_rollouts
from knapsack_rl.outcomes import is_success
from knapsack_rl.verl.run import Rollout

_TRAIN = "train"


def use_kept(
    store: KeptSuccesses,
    rows: Sequence[tuple[str, Rollout]],
    threshold: float,
    tags: MutableMapping[str, dict[str, Any]],
) -> dict[str, float]:
    """Replace failed rollouts in verl's queue, then keep the successes of this batch.

    Args:
        store: the kept successes.
        rows: the rollouts of whole groups, group after group, each with its key in the queue.
        threshold: least reward of a success.
        tags: verl's tags of rows; lengths of those that are replaced are changed.

    Returns:
        Metrics: ``kept`` (prompts that have one at the latest step of the batch), ``kept_used``, and the mean
        ``kept_age`` in steps of those used.
    """
    keys, rollouts = [key for key, _ in rows], [rollout for _, rollout in rows]
    uids = list(dict.fromkeys(rollout.uid for rollout in rollouts))
    number = {uid: i for i, uid in enumerate(uids)}
    group_PG = np.array([number[rollout.uid] for rollout in rollouts], dtype=np.int64)
    solved_PG = is_success(np.array([rollout.reward for rollout in rollouts], dtype=np.float64), threshold)
    found: dict[str, KeptSuccess] = {}
    ages = []
    for place in failed_rollouts(group_PG, solved_PG, len(uids)).tolist():
        kept = store.find(rollouts[place].prompt_id, rollouts[place].step) if place >= 0 else None
        if kept is not None:
            found[keys[place]] = kept
            ages.append(rollouts[place].step - kept.step)
    if found:
        _replace(found, tags)
    last = {rollouts[i].uid: i for i in np.flatnonzero(solved_PG).tolist()}
    _keep(store, [keys[i] for i in last.values()], [rollouts[i] for i in last.values()])
    now = max((rollout.step for rollout in rollouts), default=0)
    metrics = {"kept": float(store.count(now)), "kept_used": float(len(found))}
    return metrics | ({"kept_age": float(np.mean(ages))} if ages else {})


def _replace(found: dict[str, KeptSuccess], tags: MutableMapping[str, dict[str, Any]]) -> None:
    """Overwrite what differs between two answers to one prompt."""
    data = tq.kv_batch_get(keys=list(found), partition_id=_TRAIN, select_fields=["prompts"])
    changed = []
    for (key, kept), prompt in zip(found.items(), data["prompts"].unbind(), strict=True):
        tokens = torch.from_numpy(kept.tokens_T.astype(np.int64))
        input_ids, mask = torch.cat([prompt, tokens]), torch.ones_like(tokens)
        scores = torch.zeros(tokens.shape, dtype=torch.float32)
        scores[-1] = float(kept.rewards_F.sum())
        changed.append(
            {
                "responses": tokens,
                "response_mask": mask,
                "loss_mask": mask.clone(),
                "input_ids": input_ids,
                "position_ids": torch.arange(len(input_ids)),
                "rollout_log_probs": torch.from_numpy(kept.log_probs_T.copy()),
                "rm_scores": scores,
            }
        )
        tags[key] = tags[key] | {"response_len": len(tokens), "seq_len": len(input_ids)}
    tq.kv_batch_put(keys=list(found), partition_id=_TRAIN, fields=list_of_dict_to_tensordict(changed))


def _keep(store: KeptSuccesses, keys: Sequence[str], rollouts: Sequence[Rollout]) -> None:
    """Keep successes; not those of several turns, whose masks are needed too."""
    if not keys:
        return
    fields = ["responses", "response_mask", "rollout_log_probs"]
    data = tq.kv_batch_get(keys=list(keys), partition_id=_TRAIN, select_fields=fields)
    rows = zip(rollouts, *(data[name].unbind() for name in fields), strict=True)
    for rollout, tokens, mask, log_probs in rows:
        if len(tokens) and bool(mask.all()):
            store.keep(rollout.prompt_id, rollout.step, tokens.tolist(), log_probs.tolist(), [rollout.reward])
