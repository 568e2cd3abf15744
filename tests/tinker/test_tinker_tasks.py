"""A task is a row of the data set, not a text: ids of builders, and what every kind of data set is trained on."""

from __future__ import annotations

import asyncio
import decimal
import math
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest
import torch
import world
from tinker_cookbook.rl.problem_env import ProblemGroupBuilder
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.types import Env, EnvGroupBuilder, RLDataset

from knapsack_rl.tinker.builders import resized
from knapsack_rl.tinker.outcome_log import OutcomeLog, Planned
from knapsack_rl.tinker.tasks import TaskIds
from knapsack_rl.trace import read_trace


class Renderer:
    """Stands for the objects that builders share: its state changes while it is used, and it cannot be pickled."""

    def __init__(self) -> None:
        self.used, self.lock = 0, threading.Lock()


RENDERER = Renderer()


class Hidden(world.Sum):
    """The same question, whatever the answer."""

    def __init__(self, answer: Any, renderer: Any = RENDERER) -> None:
        super().__init__(0)
        self.answer, self.renderer = answer, renderer


@dataclass(frozen=True)
class Game(EnvGroupBuilder):
    answer: Any
    renderer: Any
    num_envs: int = world.SIZE

    async def make_envs(self) -> Sequence[Env]:
        return [world.RewardEnv(0, float(i % 2)) for i in range(self.num_envs)]


@chz.chz
class ChzGame(EnvGroupBuilder):
    answer: Any
    renderer: Any
    num_envs: int = world.SIZE

    make_envs = Game.make_envs


class PlainGame(EnvGroupBuilder):
    """Hides its answer in an attribute that is no field."""

    def __init__(self, answer: Any) -> None:
        self.renderer, self.group_size, self.__answer = RENDERER, world.SIZE, answer

    async def make_envs(self) -> Sequence[Env]:
        return [world.RewardEnv(0, 1.0) for _ in range(self.group_size)]


@dataclass
class Word:
    text: str
    seen: list[int] = field(default_factory=list)


@dataclass
class DrawnGame(EnvGroupBuilder):
    """Draws what it hides when it is made."""

    answer: Any
    num_envs: int = world.SIZE

    def __post_init__(self) -> None:
        self.secret = random.Random(str(self.answer))

    make_envs = Game.make_envs


def function_of(answer: Any) -> Callable[[], Hidden]:
    return lambda: Hidden(answer)


MAKERS: dict[str, Callable[[Any], EnvGroupBuilder]] = {
    "partial": lambda answer: ProblemGroupBuilder(partial(Hidden, answer), world.SIZE),
    "keyword": lambda answer: ProblemGroupBuilder(partial(Hidden, answer=answer, renderer=RENDERER), world.SIZE),
    "closure": lambda answer: ProblemGroupBuilder(function_of(answer), world.SIZE),
    "default": lambda answer: ProblemGroupBuilder(lambda a=answer: Hidden(a), world.SIZE),
    "method": lambda answer: ProblemGroupBuilder(Maker(answer).make, world.SIZE),
    "frozen dataclass": lambda answer: Game(answer, RENDERER),
    "chz": lambda answer: ChzGame(answer=answer, renderer=RENDERER),
    "plain class": PlainGame,
    "inner object": lambda answer: Game(Word(str(answer)), RENDERER),
    "drawn": DrawnGame,
    "array": lambda answer: Game(np.array([1.0, answer]), RENDERER),
    "tensor in a list": lambda answer: Game([{"state": torch.tensor([answer])}], RENDERER),
    "path and set": lambda answer: Game((Path(f"tasks/{answer}"), {answer, 1.5}), RENDERER),
}


@dataclass
class Maker:
    answer: Any

    def make(self) -> Hidden:
        return Hidden(self.answer)


class Builders(RLDataset):
    """Batches of builders that are made when they are asked for; or kept, as many data sets do."""

    def __init__(self, make: Callable[[Any], EnvGroupBuilder], answers: Sequence[Any], batch: int, keep: bool) -> None:
        self.make, self.answers, self.batch = make, answers, batch
        self.kept = [make(answer) for answer in answers] if keep else None

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        rows = range(index * self.batch, min((index + 1) * self.batch, len(self.answers)))
        RENDERER.used += 1
        return [self.kept[row] if self.kept else self.make(self.answers[row]) for row in rows]

    def __len__(self) -> int:
        return math.ceil(len(self.answers) / self.batch)


def ids_of(data: RLDataset, version: int = 2) -> list[str]:
    few = [*data.get_batch(0), *(data.get_batch(1) if len(data) > 1 else ())]
    task_id = TaskIds(None, few)
    return [
        task_id(builder, (batch, position), version)
        for batch in range(len(data))
        for position, builder in enumerate(data.get_batch(batch))
    ]


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", MAKERS)
def test_another_hidden_state_is_another_task_and_an_equal_one_is_the_same(kind: str, keep: bool) -> None:
    answers = [0, 1, 2, 1, 3, 0, 4]  # some rows are equal in everything
    ids = ids_of(Builders(MAKERS[kind], answers, 3, keep))
    assert len(set(ids)) == 5
    assert [ids[3], ids[5]] == [ids[1], ids[0]]
    assert ids == ids_of(Builders(MAKERS[kind], answers, 3, not keep))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda answer: Game(threading.Lock(), answer), id="cannot be pickled"),
        pytest.param(lambda answer: Game(iter([answer]), threading.Lock()), id="an iterator"),
        pytest.param(lambda answer: Game(list(range(30_000)), Renderer()), id="too much"),
        pytest.param(lambda answer: Game({Word, object}, {Maker(answer).make}), id="a set of objects"),
    ],
)
def test_where_the_content_is_not_known_the_place_in_the_data_set_identifies_a_task(make: Any) -> None:
    ids = ids_of(Builders(make, [1, 1, 1, 1, 1], 2, keep=False))
    assert len(set(ids)) == 5
    assert ids == ids_of(Builders(make, [1, 1, 1, 1, 1], 2, keep=False))


def test_ids_are_the_same_in_another_process() -> None:
    program = "import sys; sys.path.insert(0, sys.argv[1]); import test_tinker_tasks as t; t.print_ids()"
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [i for make in MAKERS.values() for i in ids_of(Builders(make, [0, 1, 2], 2, True))]


def print_ids() -> None:
    """Called in another process, with another seed of hashes."""
    print(*(i for make in MAKERS.values() for i in ids_of(Builders(make, [0, 1, 2], 2, False))))


def test_given_ids_come_first_and_1_equals_1_0() -> None:
    builders = [world.SeededBuilder(3, 0), world.SeededBuilder(3, 1)]
    assert [TaskIds(None, builders)(one, (0, 0), 2) for one in builders] == ["p3", "p3"]
    for given in (7, 7.0, "7", np.int64(7), decimal.Decimal(7)):
        assert TaskIds(lambda builder, given=given: given, builders)(builders[0], (0, 0), 2) == "7"
    for nothing in (None, "", float("nan")):
        with pytest.raises(ValueError, match=r"the prompt_id of a SeededBuilder is .*: the id is empty"):
            TaskIds(lambda builder, given=nothing: given, builders)(builders[0], (0, 0), 2)


def test_a_copy_of_another_size_keeps_all_that_a_builder_holds() -> None:
    for kind, make in MAKERS.items():
        builder = make(7)
        few = [make(1), make(2)]
        other = resized(builder, 9)
        assert TaskIds(None, few)(other, (0, 0), 2) == TaskIds(None, few)(builder, (0, 0), 2), kind
        assert len(asyncio.run(other.make_envs())) == 9
    assert resized(drawn := DrawnGame(1), 3).secret is drawn.secret  # type: ignore[attr-defined]


def test_every_row_is_a_candidate_of_its_own(tmp_path: Path) -> None:
    """32 games with one question, each with a belief; and 32 rows that are equal in everything, with one for all."""
    for name, answers in (("games", list(range(32))), ("equal", [0] * 32)):
        inner = Builders(MAKERS["partial"], answers, 8, keep=True)
        data = world.dataset(tmp_path / name, inner_of(inner), rule="beta", pool=4)
        for index in range(3):
            builders = data.get_batch(index)
            for builder in builders:
                builder.log.write(builder.share.group._replace(rewards=[0.0, 1.0], tokens=[1, 1]))
            assert sum(world.counts(builders)) == 8 * world.SIZE
        data.tracker.collect()
        steps = read_trace(tmp_path / name / "trace.jsonl").steps
        assert [len(step.plan.prompt_ids) for step in steps] == [32] * 3
        assert len(set(steps[0].plan.prompt_ids)) == len(set(answers))
        assert steps[0].plan.prompt_ids == steps[1].plan.prompt_ids  # in every pass


def inner_of(data: RLDataset) -> Any:
    """With the list that `world.dataset` empties."""
    data.asked = []  # type: ignore[attr-defined]
    return data


@pytest.mark.parametrize("sizes", [[4] * 8, [2, 9, 4, 200, 2, 2, 3, 5]])
def test_uniform_trains_exactly_what_the_cookbook_trains(tmp_path: Path, sizes: list[int]) -> None:
    """Whatever the sizes of groups, the ids, and the number of rows that are equal."""

    def make(row: int) -> world.SeededBuilder:
        return world.SeededBuilder(row % 2, row, sizes[row])

    inner = Builders(make, range(8), 4, keep=False)
    data = world.dataset(tmp_path, inner_of(inner), rule="uniform", pool=None, epochs=2)
    for index in range(4):
        ours = [group.get_total_rewards() for group in world.rollouts(data.get_batch(index))]
        stock = [asyncio.run(do_group_rollout(one, world.policy)) for one in inner.get_batch(index % 2)]
        assert ours == [group.get_total_rewards() for group in stock]
    assert data.tracker.learned == 4


def test_uniform_refuses_groups_of_one_at_construction(tmp_path: Path) -> None:
    inner = Builders(lambda row: world.SeededBuilder(row, row, 1 + 4 * row), range(4), 4, keep=False)
    with pytest.raises(ValueError, match="a group of one has no gradient"):
        world.dataset(tmp_path, inner_of(inner), rule="uniform", pool=None)


def test_a_run_that_began_with_ids_of_questions_goes_on_with_them(tmp_path: Path) -> None:
    inner = Builders(MAKERS["partial"], list(range(8)), 4, keep=True)
    settings: dict[str, Any] = {"rule": "beta", "pool": 1, "epochs": 4}

    def run(batches: range) -> Any:
        data = world.dataset(tmp_path, inner_of(inner), **settings)
        for index in batches:
            for builder in data.get_batch(index):
                builder.log.write(
                    builder.share.group._replace(rewards=[1.0] * builder.count, tokens=[1] * builder.count)
                )
        return data

    log = OutcomeLog(run(range(2)).tracker.log.path)
    assert {entry.id_version for entry in log.valid() if isinstance(entry, Planned)} == {2}
    assert len(set(run(range(2, 4)).session.open_plans[0].prompt_ids)) == 4
    old = log.path.read_text().replace('"id_version":2', '"id_version":1')
    ids = {prompt_id for entry in log.valid() if isinstance(entry, Planned) for prompt_id in entry.plan.prompt_ids}
    [before] = set(ids_of(inner, version=1))  # the question alone
    for prompt_id in ids:
        old = old.replace(prompt_id, before)
    log.path.write_text(old)
    data = run(range(2, 3))
    assert set(data.session.open_plans[0].prompt_ids) == {before}
    assert data.session.open_plans[0].seen_P.all()
    assert data.session.id_version == 1
    assert run(range(1)).session.id_version == 2  # a run from the beginning


class Rewarding(EnvGroupBuilder):
    """Gives a reward in a step, and one to the group."""

    prompt_id = "p"

    def __init__(self, step: Any, group: Any = 0.0) -> None:
        self.step, self.group, self.num_envs = step, group, 4

    async def make_envs(self) -> Sequence[Env]:
        return [world.RewardEnv(0, self.step)] * self.num_envs

    async def compute_group_rewards(self, trajectory_group: Any, env_group: Any) -> Any:
        return self.group(trajectory_group) if callable(self.group) else [(self.group, {})] * len(trajectory_group)


NUMBERS = [
    1, True, np.float32(1), np.float64(1), np.int8(1), np.bool_(True), np.array(1.0), torch.tensor(1),
    torch.tensor([1.0]), torch.tensor(1.0, dtype=torch.bfloat16, requires_grad=True), decimal.Decimal(1),
]  # fmt: skip


@pytest.mark.parametrize("reward", NUMBERS, ids=lambda value: f"{type(value).__module__}.{type(value).__name__}")
def test_rewards_of_every_kind_of_number_are_taken(tmp_path: Path, reward: Any) -> None:
    inner = Builders(lambda row: Rewarding(reward, reward), range(2), 2, keep=True)
    data = world.dataset(tmp_path, inner_of(inner))
    for group in world.rollouts(data.get_batch(0)):
        assert group.get_total_rewards() == [2.0] * 4
        assert {type(total) for total in group.get_total_rewards()} == {float}
    assert read_trace(tmp_path / "trace.jsonl").steps[0].outcomes.rewards_PG.tolist() == [2.0] * 8


@pytest.mark.parametrize(
    ("step", "group", "said"),
    [
        ("1.0", 0.0, "prompt 'p' of Rewarding got the reward '1.0' from step: rewards are finite numbers"),
        (None, 0.0, "got the reward None from step"),
        (np.inf, 0.0, "got the reward inf from step"),
        (np.array([1.0, 2.0]), 0.0, "got the reward array"),
        (1 + 0j, 0.0, r"got the reward \(1\+0j\)"),
        (0.0, "0", "got the reward '0' from compute_group_rewards"),
        (0.0, lambda group: [0.0] * len(group), "compute_group_rewards of Rewarding returned .* a reward and metrics"),
        (0.0, lambda group: None, "returned None: it must return"),
        (0.0, lambda group: [(0.0, {})], "returned 1 rewards for 4 trajectories"),
    ],
)
def test_other_rewards_get_one_clear_error(tmp_path: Path, step: Any, group: Any, said: str) -> None:
    data = world.dataset(tmp_path, inner_of(Builders(lambda row: Rewarding(step, group), range(2), 2, keep=True)))
    with pytest.raises(ValueError, match=said):
        world.rollouts(data.get_batch(0)[:1])
