"""slime's own rollout function and RolloutManager, without Ray, engines and a trainer."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import slime.rollout.sglang_rollout as engine
from slime.ray.rollout import RolloutManager
from slime.utils.dp_schedule import build_dp_schedule


class State:
    """Of `GenerateState`, what does not need a tokenizer and servers."""

    def __init__(self, args: Namespace) -> None:
        self.args, self.semaphore = args, Permits()
        self.sampling_params: dict[str, Any] = {"max_new_tokens": 8}
        self.reset()

    def dp_rank_context(self) -> Any:
        return nullcontext(0)

    def reset(self) -> None:
        self.remaining_batch_size, self.pendings, self.aborted = 0, set(), False

    submit_generate_tasks = engine.GenerateState.submit_generate_tasks


class Permits:
    async def __aenter__(self) -> None:
        """Let everybody in."""

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close."""


def rollout_manager(
    monkeypatch: pytest.MonkeyPatch, args: Namespace, world: Any
) -> tuple[Callable[[int], list[Any]], Callable[[list[Any]], dict[str, Any]], Callable[[dict[str, Any]], int]]:
    """Functions that generate a step, make it training data, and count its optimizer steps."""
    state = State(args)

    async def no_request(url: str, *_: Any, **__: Any) -> dict[str, Any]:
        return {"workers": []}

    async def nothing(*_: Any) -> None:
        """No server to wait for."""

    monkeypatch.setattr(engine, "GenerateState", lambda _: state)
    monkeypatch.setattr(engine, "get", no_request)
    monkeypatch.setattr(engine, "abort_servers_until_idle", nothing)
    args.sglang_router_ip, args.sglang_router_port = "none", 0
    manager = object.__new__(RolloutManager.__ray_metadata__.modified_class)
    manager.args, manager.data_source, manager.generate_rollout = args, world.source, engine.generate_rollout
    manager.custom_convert_samples_to_train_data_func = None
    from slime.utils.misc import load_function

    manager.custom_reward_post_process_func = load_function(args.custom_reward_post_process_path)
    args.load_debug_rollout_data = None

    def steps(data: dict[str, Any]) -> int:
        parallel = {"dp_size": 1, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}
        scheduling = Namespace(**vars(args), use_dynamic_batch_size=False, micro_batch_size=1, balance_data=False)
        scheduling.balance_by_flops = False
        lengths = [len(tokens) for tokens in data["tokens"]]
        _, _, micro_batches, _ = build_dp_schedule(
            scheduling, parallel, lengths, global_batch_size=args.global_batch_size, rollout_indices=data["rollout_ids"]
        )
        return len(micro_batches)

    return (
        lambda rollout_id: manager._get_rollout_data(rollout_id)[0],
        manager._convert_samples_to_train_data,
        steps,
    )
