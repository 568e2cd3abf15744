"""Looks: one greedy token of each candidate, by verl's own client, with the tokens that its agents would send."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from world import hf_rollout
from world.assets import make
from world.in_memory import GOLDEN, World, changed, prompts_of

from knapsack_rl.beliefs.looks import log_odds
from knapsack_rl.verl import looks
from knapsack_rl.verl.looks import GREEDY, NextToken
from knapsack_rl.verl.run import SharedRun


@pytest.fixture(autouse=True)
def own_run() -> Iterator[None]:
    yield
    SharedRun.current = None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make(folder)
    return folder / "model"


class Client:
    """verl's client: notes what it is asked, and answers by the words of the prompt."""

    def __init__(self, model: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.asked: list[tuple[str, list[int], dict[str, Any]]] = []
        self.failing: dict[str, Any] = {}  # words -> what the engine says instead

    def log_prob(self, words: str) -> float:
        return -0.02 * (1 + sum(map(ord, words)) % 97)

    async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
        self.asked.append((request_id, prompt_ids, dict(sampling_params)))
        sampling_params.clear()  # verl's servers take parameters out
        words = self.words(prompt_ids)
        said = self.failing.get(words, [self.log_prob(words)])
        if isinstance(said, Exception):
            raise said
        return SimpleNamespace(log_probs=said, token_ids=[5])

    def words(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True).removeprefix("u\n").removesuffix("\na\n")


def world_of(folder: Path, monkeypatch: pytest.MonkeyPatch, model: Path, *words: str, **more: Any) -> World:
    given = [f"actor_rollout_ref.model.path={model}", "+knapsack.rule=calibrated", *words]
    return World(folder, monkeypatch, *given, client=Client(model), **more)


def client_of(world: World) -> Client:
    client: Client = world.manager.llm_client
    return client


def words_of(prompts: list[int]) -> list[str]:
    return [GOLDEN["prompts"][i % len(GOLDEN["prompts"])][0]["content"] for i in prompts]


@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
@pytest.mark.parametrize("pool", [1, 2])
def test_every_candidate_is_asked_once_and_planned_with_what_was_said(
    pool: int, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    world = world_of(tmp_path, monkeypatch, model, f"+knapsack.pool={pool}", mode=mode)
    client, offered = client_of(world), [0, 3, 1, 2, 5, 7, 4, 9]
    for step in (1, 2):
        client.asked.clear()
        world.generate(step, offered)
        plan = world.run.session.open_plans[-1]
        assert len(client.asked) == len({request for request, _, _ in client.asked}) == len(offered)
        assert [client.words(tokens) for _, tokens, _ in client.asked] == words_of(offered)
        assert all(parameters == GREEDY for _, _, parameters in client.asked)
        expected = log_odds([client.log_prob(words) for words in words_of(offered)])
        assert plan.features is not None
        assert plan.features.confidence_P_C.tolist() == expected[:, None].tolist()
        assert plan.features.features_P_F.any(axis=1).all()  # of the texts, in the same order
        assert len(np.unique(plan.features.features_P_F, axis=0)) == len(offered)
    assert GREEDY["max_tokens"] == 1
    client.asked.clear()
    world.generate(2, [0, 1], validate=True)
    kept = list(world.run.planned)[:2]
    assert len(kept) == 2
    world.generate(2, prompts_of(kept), uids=kept)  # as verl submits groups again after a resume
    assert client.asked == []
    _, metrics = world.buffer.sample(2, "train", 4)
    assert metrics["knapsack/look_unknown"] == 0
    assert metrics["knapsack/look_seconds"] > 0


@pytest.mark.parametrize(
    "said", [RuntimeError("engine lost"), [], None, [math.nan], [0.5], [-math.inf]], ids=["lost", *"abcde"]
)
def test_a_look_that_fails_costs_its_prompt_the_confidence_and_not_the_step(
    said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = world_of(tmp_path, monkeypatch, model)
    client, offered = client_of(world), [0, 1, 2, 3]
    client.failing = {words_of([2])[0]: said}
    for step in (1, 2):
        world.generate(step, offered)
        [plan] = world.run.session.open_plans
        assert plan.features is not None
        assert np.isnan(plan.features.confidence_P_C[:, 0]).tolist() == [False, False, True, False]
        assert plan.features.features_P_F.any(axis=1).all()
        batch, metrics = world.buffer.sample(step, "train", 4)
        world.queue.kv_clear(batch.keys, "train")
        assert len(batch.keys) == 16
        assert metrics["knapsack/look_unknown"] == 0.25
    assert caplog.text.count("1 of 4 looks failed") == 1  # said once
    client.failing = dict.fromkeys(words_of(offered), said)
    world.generate(3, offered)
    [plan] = world.run.session.open_plans
    assert plan.features is not None
    assert np.isnan(plan.features.confidence_P_C).all()
    assert plan.budget == 16


def test_a_look_that_never_comes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """An engine that hangs for one prompt: the others are known."""
    import asyncio

    class Hanging(Client):
        async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
            if self.words(prompt_ids) in self.failing:
                await asyncio.Event().wait()
            return await super().generate(request_id, prompt_ids=prompt_ids, sampling_params=sampling_params)

    monkeypatch.setattr(looks, "PATIENCE", 0.2)
    client = Hanging(model)
    client.failing = {words_of([1])[0]: None}
    asking = NextToken(changed(f"actor_rollout_ref.model.path={model}"), client)
    assert np.isnan(asking.log_probs([GOLDEN["prompts"][i] for i in (0, 1, 2)])).tolist() == [False, True, False]


def test_a_look_reads_the_tokens_that_a_rollout_reads(model: Path) -> None:
    """Those of verl's own agent, the template set by the user and the cut of long prompts included."""
    import asyncio

    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, DictConfigWrap

    class Agent(AgentLoopBase):  # type: ignore[misc]  # verl ships no types
        async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
            return await self.ct_build_initial_tokens(kwargs["raw_prompt"])

    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}!{% endfor %}"
    prompts = [GOLDEN["prompts"][3], [{"role": "system", "content": "Be brief."}, *GOLDEN["prompts"][1]]]
    prompts.append([{"role": "user", "content": "long " * 50}])
    for given in (None, template):
        config = changed(f"actor_rollout_ref.model.path={model}", "data.max_prompt_length=64")
        config.actor_rollout_ref.model.custom_chat_template = given
        client = Client(model)
        asking = NextToken(config, client)
        assert np.isfinite(asking.log_probs(prompts)).all()

        async def agents_tokens(asking: NextToken = asking, config: Any = config) -> list[list[int]]:
            tokenizer, data = asking._builder.tokenizer, DictConfigWrap(config.data)
            agent = Agent(DictConfigWrap(config), None, tokenizer, None, None, data, hf_model_type="qwen2")
            return [await agent.run({}, raw_prompt=prompt) for prompt in prompts]

        expected = asyncio.run(agents_tokens())
        assert [tokens for _, tokens, _ in client.asked] == expected
        assert len(expected[2]) == 64
        assert (asking._builder.tokenizer.decode(expected[0]).endswith("!")) == (given is not None)


def test_a_prompt_with_an_image_is_not_asked_for(model: Path) -> None:
    client = Client(model)
    asking = NextToken(changed(f"actor_rollout_ref.model.path={model}"), client)
    image = [{"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "What is it?"}]}]
    assert np.isnan(asking.log_probs([image, GOLDEN["prompts"][0]])).tolist() == [True, False]
    assert len(client.asked) == 1
    assert asking.log_probs([]).tolist() == []


def test_looks_stay_with_their_plan_over_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """Outcomes that come after a resume are learned with the looks of the process that planned."""
    words, mode = ["+knapsack.pool=2", "+knapsack.features=text"], "colocate_async"
    world = world_of(tmp_path, monkeypatch, model, *words, mode=mode)
    world.answer = lambda uid, prompt, count: [float(prompt % 2)] * count
    world.generate(1, [0, 1, 2, 3, 4, 5, 6, 7])
    world.run.save(tmp_path / "global_step_1")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    tags = dict(world.queue.tags["train"])
    world.buffer.sample(2, "train", 4)

    def learned(of: World) -> Any:
        beliefs = of.run.session.allocator.beliefs  # type: ignore[attr-defined]
        return [beliefs.state_dict()[name]["weights"].tolist() for name in ("combiner", "feature_model")]

    again = world_of(tmp_path, monkeypatch, model, *words, mode=mode, tags=tags, fields=world.queue.fields)
    again.buffer.sample(2, "train", 4)
    assert client_of(again).asked == []
    assert learned(again) == learned(world)
    assert np.any(learned(world)[1])


def test_the_start_says_what_a_prompt_looks_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ", look=texts (a file of `knapsack-rl features` tells more)"
    asked = texts + " + log odds of the next token"
    for words, said in (
        ([], asked + "\n"),
        (["+knapsack.features=none"], ", look=log odds of the next token\n"),
        (["+knapsack.ask=False"], texts + "\n"),
        (["+knapsack.ask=False", "+knapsack.features=none"], ", look=none\n"),
        (["actor_rollout_ref.rollout.name=trtllm"], texts + "; no log odds, because rollout.name=trtllm ignores"),
    ):
        world = world_of(tmp_path, monkeypatch, model, *words)
        assert said in capsys.readouterr().out
        assert (world.manager.next_token is None) == ("log odds of" not in said)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    world_of(tmp_path, monkeypatch, model)
    assert ", look=log odds of the next token; texts need scikit-learn: pip" in capsys.readouterr().out


def test_a_look_is_the_logit_of_the_largest_softmax_of_the_latest_weights(model: Path) -> None:
    """By the engine of the end-to-end tests, whose samples are the same with looks between them as without."""
    import asyncio

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    engine = hf_rollout._Server(str(model), response_length=3)

    class Engine:
        async def generate(self, request_id: str, **request: Any) -> Any:
            said = await engine.generate(request_id=request_id, **request)
            assert request["sampling_params"]["temperature"] or len(said.token_ids) == 1
            return said

    asking = NextToken(changed(f"actor_rollout_ref.model.path={model}"), Engine())
    prompts, seen = GOLDEN["prompts"][:6], set()
    tokens = [asking._builder.build_initial_tokens(prompt) for prompt in prompts]

    def draws() -> list[list[int]]:
        return [asyncio.run(engine.generate(each, {"temperature": 1.0}, "x")).token_ids for each in tokens]

    for update, spread in enumerate((8.0, 16.0, 32.0)):  # the model as it is made is sure of nothing
        scales = {"model.embed_tokens.weight": spread, "lm_head.weight": spread}  # one matrix
        state = {name: weight * scales.get(name, 1.0) for name, weight in policy.state_dict().items()}
        asyncio.run(engine.update_weights(state, global_steps=update))
        without = draws()
        asyncio.run(engine.update_weights(state, global_steps=update))
        odds_P = log_odds(asking.log_probs(prompts))
        assert draws() == without
        with torch.no_grad():
            ends = [engine.model(torch.tensor([each])).logits[0, -1].double() for each in tokens]
        best = np.clip([float(end.softmax(-1).max()) for end in ends], 0.01, 0.99)
        assert np.abs(odds_P - np.log(best / (1 - best))).max() < 0.0101  # rounded to .01
        seen |= set(odds_P.tolist())
    assert len(seen) > 3


def test_calls_are_not_made_all_at_once(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    import asyncio

    class Counting(Client):
        running = most = 0

        async def generate(self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]) -> Any:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0)
            self.running -= 1
            return await super().generate(request_id, prompt_ids=prompt_ids, sampling_params=sampling_params)

    monkeypatch.setattr(looks, "MOST_AT_ONCE", 3)
    client = Counting(model)
    asking = NextToken(changed(f"actor_rollout_ref.model.path={model}"), client)
    assert np.isfinite(asking.log_probs(GOLDEN["prompts"][:10])).all()
    assert client.most == 3
    assert Counter(client.words(tokens) for _, tokens, _ in client.asked) == Counter(words_of(list(range(10))))
