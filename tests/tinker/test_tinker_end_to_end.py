"""The cookbook's own training loop, unmodified, against SkyRL's Tinker server on JAX, on a CPU."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import runs
import safetensors.torch
import server
import torch
import world
from tinker_cookbook import renderers
from tinker_cookbook.tokenizer_utils import get_tokenizer
from transformers import AutoModelForCausalLM

from knapsack_rl.tinker.dataset import LOG_FILE
from knapsack_rl.tinker.outcome_log import Group, OutcomeLog
from knapsack_rl.trace import Step, Trace, read_trace

pytestmark = pytest.mark.timeout(600)

BUDGET = world.GROUPS * world.SIZE


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The address of a server, and the name of its model."""
    folder = tmp_path_factory.mktemp("server")
    server.make_model(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, server.__file__, str(folder), str(port)], stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(url, process, folder / "log")
        yield url, str(folder / "model")
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the engine is a process of its own
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(f"{url}/api/v1/healthz", timeout=5).read()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(log.read_text()[-3000:])


def run_and_kill(kind: str, folder: Path, service: tuple[str, str], batch: int) -> None:
    """The run in a process of its own, which is killed in the middle of generating a batch."""
    command = [sys.executable, runs.__file__, kind, str(folder), *service, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout[-2000:] + done.stderr[-3000:]


def trained_on(folder: Path, batch: int) -> tuple[list[int], list[float]]:
    """What the cookbook itself recorded that it trained on: the size of each group, and all rewards."""
    lines = (folder / f"iteration_{batch:06d}" / "train_rollout_summaries.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    sizes = Counter(record["group_idx"] for record in records)
    return [sizes[group] for group in sorted(sizes)], [record["total_reward"] for record in records]


def check_plans(trace: Trace, steps: int, budget: int = BUDGET, least: int = 2) -> None:
    """Whole budgets, groups as planned, uneven ones among them."""
    assert [step.plan.step for step in trace.steps] == list(range(steps))
    for step in trace.steps:
        assert step.plan.counts_P.sum() == step.plan.budget == budget
        assert step.plan.counts_P.min() >= least
        assert 1 not in step.plan.counts_P
    assert any(len(set(step.plan.counts_P.tolist())) > 1 for step in trace.steps)


def pass_rates(steps: Sequence[Step]) -> dict[str, float]:
    """Share of successes of each prompt that was generated for, over all these steps."""
    found: dict[str, list[int]] = {}
    for step in steps:
        outcomes = step.outcomes
        each = zip(outcomes.prompt_ids, outcomes.successes_P.tolist(), outcomes.attempts_P.tolist(), strict=True)
        for prompt_id, right, tried in each:
            sums = found.setdefault(prompt_id, [0, 0])
            sums[0] += right
            sums[1] += tried
    return {prompt_id: right / tried for prompt_id, (right, tried) in found.items() if tried}


def test_it_trains_with_uneven_groups(tmp_path: Path, service: tuple[str, str]) -> None:
    """With features of texts, choosing from two batches of candidates: here, all prompts."""
    runs.run("guess", str(tmp_path), *service, epochs=8, rule="calibrated", features="text", pool=2)
    trace = read_trace(tmp_path / "trace.jsonl")
    check_plans(trace, 16, 2 * BUDGET, least=0)
    assert all(len(step.plan.prompt_ids) == world.PROMPTS for step in trace.steps)
    assert any(not step.plan.counts_P.all() for step in trace.steps)
    assert trace.ended == "finished"
    assert sorted(trace.texts.values()) == [chr(ord("a") + i) for i in range(world.PROMPTS)]
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    for batch, (step, metrics) in enumerate(zip(trace.steps, logged, strict=True)):
        # What the cookbook trained on is what was planned, and what was observed is what it trained on.
        chosen = step.plan.counts_P[step.plan.counts_P > 0].tolist()
        assert trained_on(tmp_path, batch) == (chosen, step.outcomes.rewards_PG.tolist())
        assert metrics["env/all/total_episodes"] == 2 * BUDGET
        assert metrics["env/all/reward/total"] == pytest.approx(step.outcomes.rewards_PG.mean())
        assert metrics["env/all/knapsack/price"] == pytest.approx(step.plan.price)
        assert metrics["env/all/knapsack/count_max"] == step.plan.counts_P.max()
    # It learns. Prompt by prompt, because a plan that leaves out what is solved has ever harder ones.
    early, late = pass_rates(trace.steps[:6]), pass_rates(trace.steps[-6:])
    risen = [late[prompt_id] - early[prompt_id] for prompt_id in early.keys() & late.keys()]
    assert len(risen) >= world.PROMPTS // 2
    assert np.mean(risen) > 0.03, (early, late)
    rates = [step.plan.success_rates_P for step in trace.steps]
    assert rates[0] == pytest.approx(0.5)
    # The beliefs have learned to tell prompts apart. How well cannot be asked of sixteen steps that no seed repeats:
    # where all rates pass one half, knowing nothing is as near. That they learn what was observed is for
    # test_tinker_same_plans to show.
    assert np.ptp(rates[-1]) > 0.05


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, service: tuple[str, str]) -> None:
    run_and_kill("sync", tmp_path / "again", service, batch=5)
    assert [step.plan.step for step in read_trace(tmp_path / "again" / "trace.jsonl").steps] == [0, 1, 2, 3, 4]
    runs.run("sync", str(tmp_path / "again"), *service)  # from batch 4 on
    runs.run("sync", str(tmp_path / "through"), *service)
    check_plans(read_trace(tmp_path / "through" / "trace.jsonl"), 8)
    assert world.record_of(tmp_path / "again") == world.record_of(tmp_path / "through")
    resumed = [line for line in (tmp_path / "again" / "trace.jsonl").open() if '"kind":"resume"' in line]
    assert [json.loads(line)["step"] for line in resumed] == [4]


def logits(model: Path, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits of the token after each prompt, ``[P, V]``, by transformers, with the weights of a checkpoint added."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        with tarfile.open(adapter) as archive:
            read = {Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()}
            weights = safetensors.torch.load(read["adapter_model.safetensors"].read())
            found = json.load(read["adapter_config.json"])
        places = [name for name in weights if ".lora_A." in name]
        assert places
        for name in places:
            module = policy.get_submodule(name.removeprefix("base_model.model.").split(".lora_A.")[0])
            change = weights[name.replace(".lora_A.", ".lora_B.")] @ weights[name]
            module.weight.data += found["lora_alpha"] / found["r"] * change
    with torch.no_grad():
        return torch.stack([policy(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])


def test_a_look_is_the_logit_of_the_largest_softmax_of_the_latest_weights(
    tmp_path: Path, service: tuple[str, str]
) -> None:
    """Of every candidate, at every step. So a look neither reads older weights nor leaves others behind."""
    runs.run("guess", str(tmp_path), *service, epochs=3, pool=2, save_every=1)
    saved = {}
    for found in map(json.loads, (tmp_path / "checkpoints.jsonl").open()):
        run, name = found["sampler_path"].removeprefix("tinker://").split("/")
        saved[found["batch"]] = Path(service[1]).parent / "checkpoints" / run / "sampler_weights" / f"{name}.tar.gz"
    trace = read_trace(tmp_path / "trace.jsonl")
    assert len(trace.steps) == 6
    renderer = renderers.get_renderer("role_colon", get_tokenizer(service[1]))
    questions = [trace.texts[prompt_id] for prompt_id in trace.steps[0].plan.prompt_ids]
    prompts = [renderer.build_generation_prompt([{"role": "user", "content": each}]).to_ints() for each in questions]
    wanted = []
    for step in trace.steps:
        assert [trace.texts[prompt_id] for prompt_id in step.plan.prompt_ids] == questions
        here = logits(Path(service[1]), saved.get(step.plan.step), prompts)
        largest = torch.softmax(here, dim=1).amax(dim=1).clamp(0.01, 0.99)
        wanted.append(torch.logit(largest).numpy())
        np.testing.assert_allclose(step.log_odds_P, wanted[-1], atol=0.006)  # rounded to 0.01
    # Looks of a step before would be told apart in most steps; a step with hardly a mixed group changes little.
    assert np.median(np.abs(np.diff(wanted, axis=0)).max(axis=1)) > 0.05


def test_a_killed_run_with_looks_and_a_pool_goes_on_as_if_it_had_not_been(
    tmp_path: Path, service: tuple[str, str]
) -> None:
    """Every plan, those after the kill as well, is what a run plans that has seen the same looks and outcomes."""
    run_and_kill("look", tmp_path / "run", service, batch=11)
    before = read_trace(tmp_path / "run" / "trace.jsonl")
    assert [step.plan.step for step in before.steps] == [0, 1, 2, 3, 4]
    runs.run("look", str(tmp_path / "run"), *service, epochs=8, max_steps=8)  # from batch 4 on
    trace = read_trace(tmp_path / "run" / "trace.jsonl")
    check_plans(trace, 8, least=0)
    resumed = [json.loads(line)["step"] for line in (tmp_path / "run" / "trace.jsonl").open() if '"resume"' in line]
    assert resumed == [4]
    inner = world.Dataset(builder=runs.Killing, batches=16)
    through = world.dataset(tmp_path / "through", inner, rule="calibrated", ask=True, **runs.settings("look", 8))
    for step in trace.steps:
        log_probs = {int(name[1:]): odds for name, odds in zip(step.plan.prompt_ids, step.log_odds_P, strict=True)}
        assert np.isfinite(list(log_probs.values())).all()
        client = world.Client(lambda prompt, at=log_probs: float(-np.log1p(np.exp(-at[prompt]))))
        world.sampled(through.get_batch(step.plan.step), client)
    assert world.record_of(tmp_path / "run") == world.record_of(tmp_path / "through")
    assert np.ptp([step.log_odds_P for step in trace.steps], axis=0).max() > 0.1


def test_the_asynchronous_loop_loses_no_outcome_and_counts_none_twice(tmp_path: Path, service: tuple[str, str]) -> None:
    run_and_kill("async", tmp_path, service, batch=6)
    log = OutcomeLog(tmp_path / LOG_FILE)
    before = len(list(log.valid()))
    runs.run("async", str(tmp_path), *service)
    trace = read_trace(tmp_path / "trace.jsonl")
    assert before > 0
    groups = [entry for entry in log.valid() if isinstance(entry, Group)]
    assert {group.step for group in groups} == set(range(8))
    planned = {step.plan.step: step.plan for step in trace.steps}
    for step, plan in planned.items():
        assert plan.counts_P.sum() == BUDGET
        came = {(group.place, len(group.rewards)) for group in groups if group.step == step}
        assert came == set(enumerate(plan.counts_P.tolist()))
    # A run resumed here has learned every rollout of every batch once (there is no decay). On a busy machine there are
    # more than planned, because groups too stale to train on were run again.
    rewards = [reward for group in groups for reward in group.rewards]
    assert len(rewards) >= 8 * BUDGET
    resumed = world.dataset(tmp_path, world.Dataset(batches=10), rule="calibrated")
    resumed.get_batch(8)
    table = resumed.session.allocator.beliefs.table  # type: ignore[attr-defined]
    assert table["successes"].sum() + table["failures"].sum() == len(rewards)
    assert table["successes"].sum() == sum(rewards)


def test_the_streaming_loop(tmp_path: Path, service: tuple[str, str]) -> None:
    """Four passes over the prompts: after two, looks that no seed repeats may leave every plan even."""
    runs.run("stream", str(tmp_path), *service)
    trace = read_trace(tmp_path / "trace.jsonl")
    check_plans(trace, 8)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [metrics["env/all/total_episodes"] for metrics in logged] == [BUDGET] * 8
    assert [metrics["env/all/knapsack/price"] for metrics in logged] == pytest.approx(
        [s.plan.price for s in trace.steps]
    )
