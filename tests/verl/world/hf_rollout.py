"""A rollout engine for verl: a transformers model behind a Ray actor, whose samples do not depend on timing.

The n-th sampling request for a prompt under given weights always gets the same random numbers, and is generated
separately. So a run is a function of its plans and weights, and a resumed run can be compared with one that was not
interrupted. Greedy requests draw nothing, and do not count.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput


class _Server:
    def __init__(self, model_path: str, response_length: int) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self.response_length = response_length
        self.global_steps: int | None = None
        self.asked: Counter[tuple[int, ...]] = Counter()
        self.failures = float(os.environ.get("WORLD_FAILURES", "0"))

    async def ping(self) -> None:
        pass

    async def update_weights(self, state: dict[str, torch.Tensor], global_steps: int | None) -> None:
        unexpected = self.model.load_state_dict(state, strict=False).unexpected_keys
        assert not unexpected, unexpected
        self.global_steps = global_steps
        self.asked.clear()

    async def generate(self, prompt_ids: list[int], sampling_params: dict[str, Any], request_id: str, **_: Any) -> Any:
        prompt, temperature = tuple(int(token) for token in prompt_ids), sampling_params.get("temperature", 1.0)
        most = min(sampling_params.get("max_tokens", self.response_length), self.response_length)
        self.asked[prompt] += temperature > 0
        random = torch.Generator().manual_seed(hash((prompt, self.asked[prompt], self.global_steps)) & 0x7FFFFFFF)
        if temperature and torch.rand((), generator=random) < self.failures:
            raise RuntimeError("a failure simulated by the test")
        tokens, log_probs = self._sample(prompt, temperature, most, random)
        steps = {"global_steps": self.global_steps}
        return TokenOutput(token_ids=tokens, log_probs=log_probs, stop_reason="completed", extra_fields=steps)

    @torch.no_grad()
    def _sample(
        self, prompt: tuple[int, ...], temperature: float, most: int, random: torch.Generator
    ) -> tuple[list[int], list[float]]:
        tokens, log_probs = list(prompt), []
        for _ in range(most):
            logits = self.model(torch.tensor([tokens])).logits[0, -1].float()
            chances = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
            token = int(torch.multinomial(chances.exp(), 1, generator=random) if temperature else chances.argmax())
            tokens.append(token)
            log_probs.append(float(chances[token]))
            if token == self.model.config.eos_token_id:
                break
        return tokens[len(prompt) :], log_probs

    # Calls of verl that need no action here.
    async def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    wake_up = sleep = abort_all_requests = resume_generation = start_profile = stop_profile = _nothing
    clear_kv_cache = release_kv_cache = resume_kv_cache = _nothing


class HFReplica(RolloutReplica):
    async def launch_servers(self) -> None:
        path = self.model_config["path"] if hasattr(self.model_config, "get") else self.model_config.local_path
        options = {"name": f"hf_cpu_{self.replica_rank}", "max_concurrency": 1000, "num_cpus": 0}
        server = ray.remote(_Server).options(**options).remote(path, self.config.response_length)
        await server.ping.remote()
        self.servers, self._server_handle = [server], server
        self._server_address = f"hf-cpu-{self.replica_rank}"


class ServerAdapter(BaseRollout):
    """Runs on each training rank and passes the weights of this rank's replica to its server."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.server: Any = None

    async def resume(self, tags: list[str]) -> None:
        pass

    async def release(self) -> None:
        pass

    async def update_weights(self, weights: Any, global_steps: int | None = None, **_: Any) -> None:
        if self.server is None:
            self.server = ray.get_actor(f"hf_cpu_{self.replica_rank}")
        state = {name: (w.full_tensor() if hasattr(w, "full_tensor") else w).cpu().float() for name, w in weights}
        await self.server.update_weights.remote(state, global_steps)
