"""What the adapter meets of slime and miles, where they are not: a sample, a data source, an engine to replace."""

from __future__ import annotations

import copy
import enum
import json
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass
class Sample:
    """As in slime.utils.types."""

    class Status(enum.Enum):
        PENDING = "pending"
        COMPLETED = "completed"
        ABORTED = "aborted"

    group_index: int | None = None
    index: int | None = None
    rollout_id: int | None = None
    prompt: Any = ""
    tokens: list[int] = field(default_factory=list)
    multimodal_inputs: Any = None
    response: str = ""
    response_length: int = 0
    label: str | None = None
    reward: Any = None
    loss_mask: list[int] | None = None
    remove_sample: bool = False
    status: Status = Status.PENDING
    metadata: dict[str, Any] = field(default_factory=dict)
    session_id: str | None = None

    @property
    def effective_response_length(self) -> int:
        return self.response_length if self.loss_mask is None else sum(self.loss_mask)

    def get_reward_value(self, args: Namespace) -> float:
        return self.reward if not args.reward_key else self.reward[args.reward_key]


class Rows(list[Sample]):
    """The data set, in order."""


class RolloutDataSourceWithBuffer:
    """As in slime.rollout.data_source, without shuffling and without its buffer."""

    def __init__(self, args: Namespace) -> None:
        self.args, self.offset, self.count = args, 0, 0
        lines = Path(args.prompt_data).read_text(encoding="utf-8").splitlines()
        self.dataset = Rows(
            Sample(prompt=row[args.input_key], label=row.get(args.label_key), metadata=row.get("metadata") or {})
            for row in map(json.loads, lines)
        )

    def get_samples(self, num_samples: int) -> list[list[Sample]]:
        groups = []
        for _ in range(num_samples):
            sample = copy.deepcopy(self.dataset[self.offset % len(self.dataset)])
            sample.group_index = sample.index = self.count
            self.offset, self.count = self.offset + 1, self.count + 1
            groups.append([sample])
        return groups

    def save(self, rollout_id: int) -> None:
        path = Path(self.args.save) / f"rollout/state_{rollout_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([self.offset, self.count]), encoding="utf-8")

    def load(self, rollout_id: int | None = None) -> None:
        path = Path(self.args.load or "") / f"rollout/state_{rollout_id}.json"
        if self.args.load is not None and path.exists():
            self.offset, self.count = json.loads(path.read_text(encoding="utf-8"))


async def generate(args: Namespace, sample: Sample, sampling_params: dict[str, Any]) -> Sample:
    """Replaced by the tests."""
    raise NotImplementedError


def modules(library: str) -> dict[str, ModuleType]:
    """The modules of slime or of miles, by name."""
    contents: dict[str, dict[str, Any]] = {
        "": {},
        ".rollout": {},
        ".rollout.data_source": {"RolloutDataSourceWithBuffer": RolloutDataSourceWithBuffer},
        ".rollout.sglang_rollout": {"generate": generate},
        ".utils": {},
        ".utils.types": {"Sample": Sample},
    }
    made = {}
    for name, names in contents.items():
        made[library + name] = ModuleType(library + name)
        vars(made[library + name]).update(names)
    return made
