"""The study: a supervised start, a short tuning of learning rates, then all rules of one seed after the other.

Processes share the card. Each has a model of its own and takes runs from one queue; rows are written as they come, a
line each, so that the study can be cut off anywhere.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import queue
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.gpu.learner import Learner
from benchmarks.gpu.llama import Llama, Sampler
from benchmarks.gpu.policy import Machine, SampledPolicy
from knapsack_arena.lab.arithmetic import verify
from knapsack_arena.lab.environment import LanguageModelEnvironment
from knapsack_arena.lab.options import split_rule
from knapsack_arena.lab.regimes import Item, Regime
from knapsack_arena.registry import RuleContext, make_strategy
from knapsack_arena.strategies import StepResult, StepSpec, run_step
from knapsack_rl.notation import FloatArray
from knapsack_rl.tasks.recipe import Recipe

# The rules, with options (`knapsack_arena.lab.options`): equal division, the published rule, and the default of the TRL
# adapter. The first is what the others are compared with.
RULES: Final = ("uniform", "paper", "calibrated-pool@prompt")
# Seeds below are for tuning, as in the laboratory.
TUNING_SEED, FIRST_SEED, SEEDS = 0, 10, 40
TUNING_SHARE: Final = 0.35


@dataclass(frozen=True)
class Sizes:
    """Sizes of the study.

    Attributes:
        rules: that are compared, the one of equal division first.
        groups, average: prompts of a step under equal division, and rollouts per prompt.
        steps, tuning_steps: of a run, and of one that compares learning rates.
        learning_rates: that are compared, rising.
        longest: most tokens of an answer, end of sequence included.
        every: steps from one measurement to the next.
        samples, last_samples: rollouts of each held-out prompt at a measurement, and at the end of a run.
        supervised, batch, supervised_rate: most steps of the supervised start, examples of each, and learning rate.
        target: mean success rate at which the supervised start ends.
    """

    rules: tuple[str, ...] = RULES
    groups: int = 64
    average: int = 8
    steps: int = 80
    tuning_steps: int = 20
    learning_rates: tuple[float, ...] = (2e-5, 6e-5)
    longest: int = 96
    every: int = 10
    samples: int = 4
    last_samples: int = 16
    supervised: int = 500
    batch: int = 64
    supervised_rate: float = 2e-4
    target: float = 0.35


@dataclass(frozen=True)
class Run:
    """One rule with one learning rate and one seed."""

    stage: str
    rule: str
    learning_rate: float
    seed: int
    steps: int


@dataclass(frozen=True)
class Study:
    """What all processes are told.

    Attributes:
        weights: the folder of the model as it comes.
        items: the file of problems (`benchmarks.gpu.problems`).
        out: folder of the rows, ``rows.jsonl``.
        base: folder of the model after the supervised start.
        ends: when the study ends, by ``time.time()``.
        sizes: its sizes.
        device: ``cuda`` or ``cpu``.
        threads: of each process on the CPU.
    """

    weights: Path
    items: Path
    out: Path
    base: Path
    ends: float
    sizes: Sizes = field(default_factory=Sizes)
    device: str = "cuda"
    threads: int = 4

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.ends - time.time()

    def write(self, kind: str, **row: Any) -> None:
        """Add a row."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, **row}) + "\n")

    def problems(self, part: str) -> list[dict[str, str]]:
        """The problems of ``train``, ``heldout`` or ``teach``."""
        rows = [json.loads(line) for line in self.items.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row["part"] == part]

    def regime(self) -> Regime:
        """The regime; its base model is made here, by `supervised_start`."""
        parts = [
            tuple(Item(row["prompt"], row["worked"], row["source"]) for row in self.problems(part))
            for part in ("train", "heldout")
        ]
        sizes = self.sizes
        return Regime(
            "smollm2-worked", *parts, teacher=lambda rng, count: [], recipe=Recipe(), groups=sizes.groups,
            average=sizes.average, steps=sizes.steps, longest=sizes.longest, verify=verify,
        )  # fmt: skip

    def machine(self) -> Machine:
        """The model as it comes, and memory to sample from it."""
        torch.set_num_threads(self.threads)
        device = torch.device(self.device)
        tokenizer = Tokenizer.from_file(str(self.weights / "tokenizer.json"))
        config = json.loads((self.weights / "config.json").read_text(encoding="utf-8"))
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model, sizes = Llama.load(self.weights, device, dtype), self.sizes
        prompts = [row["prompt"] for part in ("train", "heldout", "teach") for row in self.problems(part)]
        places = max(map(len, (each.ids for each in tokenizer.encode_batch(prompts)))) + sizes.longest
        sampler = Sampler(model, sizes.groups * sizes.average, places, sizes.longest, config["eos_token_id"])
        return Machine(model, sampler, tokenizer)


def conduct(study: Study, workers: int) -> None:
    """Run the study on ``workers`` processes until its end."""
    processes = _Processes(study, workers)
    try:
        if not (study.base / "model.safetensors").is_file():
            supervised_start(study)
        rules, rates = study.sizes.rules, study.sizes.learning_rates
        steps = study.sizes.tuning_steps
        scores = processes.scores([Run("tuning", rule, rate, TUNING_SEED, steps) for rule in rules for rate in rates])
        best = {rule: max(rates, key=lambda rate, rule=rule: scores.get((rule, rate), 0.0)) for rule in rules}
        study.write("chosen", best=best, scores=[[*key, score] for key, score in scores.items()])
        processes.finish([run for seed in range(FIRST_SEED, FIRST_SEED + SEEDS) for run in runs(study, best, seed)])
    finally:
        processes.stop()
        study.write("end", seconds_left=study.left)


def runs(study: Study, best: Mapping[str, float], seed: int) -> Iterator[Run]:
    """The runs of one seed: each rule at its best learning rate, and equal division at all."""
    sizes, baseline = study.sizes, study.sizes.rules[0]
    for rule in sizes.rules:
        yield Run("study", rule, best[rule], seed, sizes.steps)
    for rate in sizes.learning_rates:
        if rate != best[baseline]:
            yield Run("study", baseline, rate, seed, sizes.steps)


def supervised_start(study: Study) -> None:
    """Teach the form of the answers until the target, and write the base model, its success rates and the machine."""
    began, sizes, regime = time.time(), study.sizes, study.regime()
    machine = study.machine()
    study.write("machine", **_described(study, machine))
    policy = _policy(study, machine, regime, sizes.supervised_rate)
    problems = study.problems("teach")
    prompts = machine.tokens([row["prompt"] for row in problems])
    answers = [[*tokens, machine.sampler.end] for tokens in machine.tokens([row["worked"] for row in problems])]
    learner = Learner(machine.model, sizes.supervised_rate)
    for step in range(sizes.supervised):
        at = [(step * sizes.batch + i) % len(problems) for i in range(sizes.batch)]
        learner.set_learning_rate(sizes.supervised_rate * min(1, (step + 1) / 5))
        batch = [answers[i] for i in at]
        loss = learner.step([prompts[i] for i in at], batch, [1.0] * len(at), sum(map(len, batch)))
        if (step + 1) % 20 == 0 or step + 1 == sizes.supervised:
            rate = float(policy.success_rates(range(min(sizes.groups * 2, len(regime.train)))).mean())
            study.write("supervised", step=step + 1, loss=float(loss), rate=rate, seconds=time.time() - began)
            if rate >= sizes.target:
                break
    policy.samples = sizes.last_samples
    for part, rows in (("train", _train_rows(regime)), ("heldout", _heldout_rows(regime))):
        rates = policy.success_rates(rows)
        items = [*regime.train, *regime.heldout]
        by_source: dict[str, float] = {}
        for name in sorted({item.source for item in items}):
            of_it = [rate for row, rate in zip(rows, rates, strict=True) if items[row].source == name]
            by_source[name] = float(np.mean(of_it)) if of_it else float("nan")
        spread = {"below": float((rates < 0.05).mean()), "between": float(((rates >= 0.05) & (rates <= 0.95)).mean())}
        error = sampling_error(rates, policy.samples)
        study.write("base", part=part, rate=float(rates.mean()), error=error, **spread, by_source=by_source)
    config = json.loads((study.weights / "config.json").read_text(encoding="utf-8"))
    machine.model.save(study.base.with_suffix(".new"), config)
    study.base.with_suffix(".new").rename(study.base)
    study.write("started", seconds=time.time() - began)
    del machine, policy, learner
    if study.device == "cuda":
        torch.cuda.empty_cache()  # the other processes need the memory


def train(study: Study, machine: Machine, regime: Regime, run: Run) -> float:
    """Train the machine's model, as it is now, with a rule; write a row at each measurement.

    Returns:
        The mean of the last two held-out success rates.
    """
    sizes, (name, options) = study.sizes, split_rule(run.rule)
    policy = _policy(study, machine, regime, run.learning_rate * options.learning_rate)
    environment = LanguageModelEnvironment(regime, run.seed, options.loss, policy)
    clock, since, found = _Clock(), _Counts(), list[float]()
    context = RuleContext(
        groups=options.groups(sizes.groups), average=sizes.average, prompts=len(regime.train), seed=run.seed,
        features=clock.timed("prefill", environment.hidden_states), kept=environment.kept if options.priced else None,
    )  # fmt: skip
    strategy = make_strategy(name, context)
    generate = clock.timed("generate", environment.generate)
    for step in range(1, run.steps * options.divisor + 1):
        if study.left < 0:
            break
        began = time.perf_counter() - clock.of("generate", "prefill")
        result = run_step(strategy, StepSpec(step - 1, context.groups, context.budget, environment.take), generate)
        clock.add("rule", time.perf_counter() - clock.of("generate", "prefill") - began)
        clock.timed("learn", environment.train)(result.batch)
        since.add(result)
        last = step == run.steps * options.divisor
        if step % (sizes.every * options.divisor) == 0 or last:
            policy.samples = sizes.last_samples if last and run.stage != "tuning" else sizes.samples
            rates = clock.timed("measure", environment.held_out_rates)()
            found.append(float(rates.mean()))
            study.write(
                "point", **asdict(run), step=step / options.divisor, rollouts=since.rollouts, tokens=since.tokens,
                held_out=found[-1], error=sampling_error(rates, policy.samples), **since.shares(),
                largest=since.largest, seconds=dict(clock.seconds),
            )  # fmt: skip
    return float(np.mean(found[-2:])) if found else float("nan")


def sampling_error(rates_P: FloatArray, samples: int) -> float:
    """Standard error of the mean of success rates that were each measured by ``samples`` rollouts, prompts fixed."""
    variance_P = rates_P * (1 - rates_P) / max(samples - 1, 1)
    return float(np.sqrt(variance_P.sum()) / len(rates_P))


class _Counts:
    """Rollouts of a run, and shares of them since the last call of `shares`."""

    def __init__(self) -> None:
        self.rollouts = self.tokens = self.largest = 0
        self._since = np.zeros(4)

    def add(self, result: StepResult) -> None:
        batch = result.batch.outcomes
        mixed = batch.mixed_P
        self.rollouts += result.rollouts
        self.tokens += result.tokens
        self.largest = max(self.largest, int(batch.counts_P.max(initial=0)))
        self._since += [result.rollouts, int(batch.counts_P[mixed].sum()), len(mixed), int(mixed.sum())]

    def shares(self) -> dict[str, float]:
        rollouts, mixed, prompts, mixed_prompts = self._since
        self._since[:] = 0
        return {"mixed_rollouts": mixed / rollouts, "mixed_prompts": mixed_prompts / prompts}


class _Clock:
    """Seconds by name; each timed call ends with a value on the host, so GPU work is in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.perf_counter()
            found = function(*arguments)
            self.add(name, time.perf_counter() - began)
            return found

        return call

    def of(self, *names: str) -> float:
        return sum(self.seconds.get(name, 0.0) for name in names)


class _Processes:
    """Processes that take runs from one queue."""

    def __init__(self, study: Study, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.study, self.queue, self.results = study, context.Queue(), context.Queue()
        self.all = [
            context.Process(target=work, args=(study, self.queue, self.results), daemon=True) for _ in range(count)
        ]
        for process in self.all:
            process.start()

    def scores(self, runs: Sequence[Run]) -> dict[tuple[str, float], float]:
        """Run these; their scores, without those that failed or did not end in `TUNING_SHARE` of the time."""
        for run in runs:
            self.queue.put(run)
        found: dict[tuple[str, float], float] = {}
        enough = (1 - TUNING_SHARE) * self.study.left
        for _ in runs:
            while self._alive() and self.study.left > enough:
                try:
                    run, score = self.results.get(timeout=1)
                except queue.Empty:
                    continue
                found[run.rule, run.learning_rate] = score
                break
        return {key: score for key, score in found.items() if not np.isnan(score)}

    def finish(self, runs: Sequence[Run]) -> None:
        """Run these, until all are done or the time is up."""
        for each in (*runs, *[None] * len(self.all)):
            self.queue.put(each)
        while self._alive() and self.study.left > 0:
            time.sleep(0.2)

    def stop(self) -> None:
        """End the processes."""
        for each in (self.queue, self.results):
            each.cancel_join_thread()
        for process in self.all:
            process.terminate()
        for process in self.all:
            process.join(5)

    def _alive(self) -> bool:
        return any(process.is_alive() for process in self.all)


def work(study: Study, runs: Any, results: Any) -> None:
    """Take runs from a queue until there is None, or no time for another; each begins with the base model."""
    run: Run | None = None
    try:
        machine, regime = study.machine(), study.regime()
        base: dict[str, torch.Tensor] | None = None
        longest = 0.0
        while (run := runs.get()) is not None:
            if base is None:
                base = Llama.load(study.base, machine.model.device, torch.float32).masters
            # A run that cannot come near its end would only slow the others.
            if run.stage == "study" and study.left < 0.7 * longest:
                break
            began = time.time()
            machine.model.assign(base)
            score = train(study, machine, regime, run)
            seconds = time.time() - began
            longest = max(longest, seconds if run.stage == "study" else 0.0)
            study.write("ran", **asdict(run), seconds=seconds, score=score, captured=machine.sampler.captured)
            results.put((run, score))
    except Exception:
        study.write("failed", run=run and asdict(run), error=traceback.format_exc())
        if run is not None:
            results.put((run, float("nan")))
        raise


def _policy(study: Study, machine: Machine, regime: Regime, learning_rate: float) -> SampledPolicy:
    prompts = [item.prompt for item in (*regime.train, *regime.heldout)]
    return SampledPolicy(machine, prompts, verify, learning_rate, study.sizes.samples)


def _described(study: Study, machine: Machine) -> dict[str, Any]:
    card = torch.cuda.get_device_name() if study.device == "cuda" else platform.machine()
    return {
        "card": card, "torch": torch.__version__, "python": platform.python_version(), "numpy": np.__version__,
        "captured": machine.sampler.captured, "sizes": asdict(study.sizes),
    }  # fmt: skip


def _train_rows(regime: Regime) -> range:
    return range(min(len(regime.train), 256))


def _heldout_rows(regime: Regime) -> range:
    return range(len(regime.train), len(regime.train) + len(regime.heldout))
