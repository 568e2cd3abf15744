"""Kept successes in TRL: a prompt's last right answer replaces a rollout of a group that failed as a whole.

The replacement is made in the batch that TRL has generated and scored, before it is trained on. Tokens and masks are
the kept ones, log-probabilities are those of the current policy, so that the kept rollout has weight 1 (docs/value.md
says what that biases). The batch keeps its number of rows. Every process holds the same store, because the prompt of a
kept rollout may be planned in another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from trl.trainer.utils import use_adapter

from knapsack_rl.kept import KeptSuccess, KeptSuccesses, failed_rollouts
from knapsack_rl.notation import BoolArray, IntArray
from knapsack_rl.outcomes import is_success
from knapsack_rl.plan import Plan

# Tensors of a batch with one number a completion token, and what fills them beyond the completion.
_PER_TOKEN = ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps", "importance_sampling_ratio")


class _Use(NamedTuple):
    """A kept success that replaces row ``row`` of this process's batch."""

    row: int
    kept: KeptSuccess


def check_keep_successes(trainer: Any) -> None:
    """Check that rollouts of this trainer can be replaced.

    Raises:
        ValueError: rollouts that consist of more than a prompt and a completion.
    """
    more = {
        "tools": trainer.tools,
        "environment_factory": trainer.environment_factories is not None,
        "rollout_func": trainer.rollout_func is not None,
        "images": trainer._is_vlm,
    }
    for name, used in more.items():
        if used:
            raise ValueError(
                f"keep_successes=True cannot be used with {name}: a kept rollout is a prompt and one completion; set"
                " keep_successes=False"
            )


def successes(trainer: Any, rewards_PG: torch.Tensor) -> BoolArray:
    """Which rollouts succeeded, ``[PG]``, by the main process's threshold: it alone has seen all earlier rewards."""
    threshold = [trainer.session.success_threshold]
    if trainer.accelerator.num_processes > 1:
        broadcast_object_list(threshold)
    return is_success(rewards_PG.double().cpu().numpy(), threshold[0])


def use_kept(
    trainer: Any, store: KeptSuccesses, batch: dict[str, Any], plan: Plan, rewards_per_func: torch.Tensor,
    successes_PG: BoolArray,
) -> tuple[torch.Tensor, dict[str, float]]:  # fmt: skip
    """Replace failed rollouts of the batch in place, then keep the successes of this step.

    Args:
        trainer: whose batch it is.
        store: the kept successes.
        batch: this process's rows of the step, as TRL returns them.
        plan: the step's plan.
        rewards_per_func: rewards of all processes' rollouts, ``[PG, functions]``.
        successes_PG: which of them succeeded, ``[PG]``.

    Returns:
        The rewards with those of the kept rollouts in place, and metrics.
    """
    rows = len(batch["advantages"])
    places_P = failed_rollouts(plan.group_PG, successes_PG, plan.counts_P.size)
    found = {
        int(place): kept
        for prompt_id, place in zip(plan.prompt_ids, places_P, strict=True)
        if place >= 0 and (kept := store.find(prompt_id, plan.step)) is not None
    }
    rewards = rewards_per_func.clone()
    for place, kept in found.items():
        rewards[place] = torch.from_numpy(kept.rewards_F).to(rewards)
    ratios = _replace(trainer, batch, found, rows) if found else []
    _keep(trainer, store, batch, plan, rewards_per_func, successes_PG)
    metrics = {"kept": float(store.count(plan.step)), "kept_used": float(len(found))}
    if found:
        metrics["kept_age"] = float(np.mean([plan.step - kept.step for kept in found.values()]))
    if known := [ratio for ratio in ratios if not math.isnan(ratio)]:
        metrics["kept_ratio"] = float(np.mean(known))
    return rewards, metrics


def _replace(trainer: Any, batch: dict[str, Any], found: dict[int, KeptSuccess], rows: int) -> list[float]:
    """Put the kept rollouts into this process's rows; truncated ratios of all of them, NaN where they are unknown."""
    accelerator = trainer.accelerator
    first = accelerator.process_index * rows
    uses = [_Use(place - first, kept) for place, kept in found.items() if first <= place < first + rows]
    _widen(batch, max((use.kept.tokens_T.size for use in uses), default=0), trainer)
    ids, mask = batch["completion_ids"], batch["completion_mask"]
    for row, kept in uses:
        size = kept.tokens_T.size
        ids[row], mask[row] = trainer._tokenizer.pad_token_id, 0
        ids[row, :size] = torch.from_numpy(kept.tokens_T).to(ids)
        mask[row, :size] = 1
    batch["num_items_in_batch"] = accelerator.gather(mask.sum()).sum().to(batch["num_items_in_batch"])
    # Sharded weights need all processes in every forward pass, for as many rows.
    most = int(np.bincount(np.array(list(found)) // rows).max())
    at = [use.row for use in uses] + [0] * (most - len(uses))
    ratios = [float("nan")] * len(uses)
    # With vLLM but without its correction there are those of the engine alone, which the off-policy mask reads.
    present = [name for name in ("old_per_token_logps", "sampling_per_token_logps") if name in batch]
    if present:
        now = _log_probs(trainer, trainer.model, batch, at)
        for i, (row, kept) in enumerate(uses):
            for name in present:
                batch[name][row] = now[i]
            ratios[i] = kept.weight(float(now[i][: kept.tokens_T.size].double().sum()))
    if "importance_sampling_ratio" in batch:
        for row, _ in uses:
            batch["importance_sampling_ratio"][row] = 1.0
    if "ref_per_token_logps" in batch:
        reference = _reference_log_probs(trainer, batch, at)
        for i, (row, _) in enumerate(uses):
            batch["ref_per_token_logps"][row] = reference[i]
    return list(gather_object(ratios)) if accelerator.num_processes > 1 else ratios


def _widen(batch: dict[str, Any], size: int, trainer: Any) -> None:
    """Make room for completions of ``size`` tokens."""
    multiple = trainer.pad_to_multiple_of or 1
    more = -(-size // multiple) * multiple - batch["completion_ids"].shape[1]
    if more <= 0:
        return
    wide = batch["completion_ids"].shape[1]
    fill = {"completion_ids": trainer._tokenizer.pad_token_id, "completion_mask": 0} | dict.fromkeys(_PER_TOKEN, 0)
    for name, value in fill.items():
        if name in batch and batch[name].shape[1] == wide:
            batch[name] = torch.nn.functional.pad(batch[name], (0, more), value=value)


def _log_probs(trainer: Any, model: Any, batch: dict[str, Any], rows: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of the completions in these rows, ``[rows, T]``."""
    tokens = torch.cat([batch["prompt_ids"][rows], batch["completion_ids"][rows]], dim=1)
    mask = torch.cat([batch["prompt_mask"][rows], batch["completion_mask"][rows]], dim=1)
    with torch.no_grad():
        found: torch.Tensor = trainer._get_per_token_logps_and_entropies(
            model,
            tokens,
            mask,
            batch["completion_ids"].shape[1],
            batch_size=trainer.args.per_device_train_batch_size,
        )[0]
    return found


def _reference_log_probs(trainer: Any, batch: dict[str, Any], rows: Sequence[int]) -> torch.Tensor:
    """The same under the reference model: its own, or the model without its adapter."""
    if trainer.ref_model is not None:
        return _log_probs(trainer, trainer.ref_model, batch, rows)
    model = trainer.accelerator.unwrap_model(trainer.model)
    with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
        return _log_probs(trainer, trainer.model, batch, rows)


def _keep(
    trainer: Any, store: KeptSuccesses, batch: dict[str, Any], plan: Plan, rewards_per_func: torch.Tensor,
    successes_PG: BoolArray,
) -> None:  # fmt: skip
    """Keep the last success of every prompt, in every process."""
    last_P = np.full(plan.counts_P.size, -1, dtype=np.int64)
    solved: IntArray = np.flatnonzero(successes_PG)
    last_P[plan.group_PG[solved]] = solved  # the last of repeated indices is assigned
    rows = len(batch["advantages"])
    first = trainer.accelerator.process_index * rows
    own = []
    for prompt, place in enumerate(last_P.tolist()):
        row = place - first
        if place < 0 or not 0 <= row < rows:
            continue
        answered = batch["completion_mask"][row].bool()
        if answered.any():  # truncated completions may be masked as a whole
            tokens = batch["completion_ids"][row][answered].cpu().numpy()
            then = batch.get("old_per_token_logps")
            known = np.full(tokens.size, np.nan) if then is None else then[row][answered].float().cpu().numpy()
            own.append((prompt, tokens, known, rewards_per_func[place].double().cpu().numpy()))
    if trainer.accelerator.num_processes > 1:
        own = gather_object(own)
    for prompt, tokens, known, rewards_F in sorted(own, key=lambda each: int(each[0])):
        store.keep(plan.prompt_ids[prompt], plan.step, tokens, known, rewards_F)
