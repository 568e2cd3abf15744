"""Options of a trial in the laboratory, written after the rule's name: ``calibrated-pool@prompt@lr=2@step=1/2@kept``.

| option | meaning |
|---|---|
| `rollout`, `prompt` | the loss weighs all rollouts alike (default), or all prompts |
| `unscaled`, `prompt-unscaled` | advantages are not divided by the group's standard deviation |
| `maxrl` | they are divided by the group's mean reward |
| `lr=F` | the regime's learning rate times F |
| `step=1/N` | steps of 1/N of the regime's groups and rollouts, so N times as many updates for the same rollouts |
| `group=N` | the smallest group of our rules with a pool has N rollouts |
| `cost=F` | a step costs F times its budget beside its rollouts: our rules spend what a step deserves |
| `look=base`, `look=texts` | prompts are told apart by the base model's states, or texts; else by their first look |
| `look=odds` | prompts are told apart by the log odds of the next token alone |
| `kept` | a prompt's last success replaces a rollout of a group of failures |
| `priced` | the same, and the rule knows which prompts have one |
| `ratio` | weigh these rollouts by their truncated importance ratio |
| `kept-failures` | control: a prompt's last failure replaces a rollout of a group of successes |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from knapsack_arena.lab.environment import LookName, Loss
from knapsack_arena.strategies import StepSpec, Strategy
from knapsack_arena.strategies.protocol import StepGenerator
from knapsack_rl.files import SavedToFile, State


@dataclass(frozen=True)
class Options:
    """What is varied beside the rule.

    Attributes:
        loss: how rollouts become an update.
        learning_rate: factor on the regime's.
        divisor: a step has the regime's groups and rollouts divided by this.
        priced: whether the rule knows which prompts have a kept success.
        min_group: rollouts of the smallest group.
        step_cost: cost of a step as a share of its budget; None to spend the budget.
        look: what tells prompts apart, beside the present confidence.
    """

    loss: Loss = field(default_factory=Loss)
    learning_rate: float = 1.0
    divisor: int = 1
    priced: bool = False
    min_group: int = 2
    step_cost: float | None = None
    look: LookName = "policy"

    def groups(self, groups: int) -> int:
        """Prompts of a step under equal division.

        Raises:
            ValueError: the divisor does not divide them.
        """
        if groups % self.divisor:
            raise ValueError(f"step=1/{self.divisor}: the regime's {groups} groups a step cannot be divided by it")
        return groups // self.divisor


class SmallerSteps(SavedToFile):
    """Wraps a strategy: every step has a share of the groups and of the budget."""

    def __init__(self, strategy: Strategy, options: Options) -> None:
        self.strategy, self.options = strategy, options

    def step(self, spec: StepSpec) -> StepGenerator:
        """A step of the wrapped strategy with less to spend."""
        return self.strategy.step(
            replace(spec, groups=self.options.groups(spec.groups), budget=spec.budget // self.options.divisor)
        )

    def state_dict(self) -> State:
        """The wrapped strategy's state."""
        return self.strategy.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the wrapped strategy's state."""
        self.strategy.load_state_dict(state)


def _loss(**changes: Any) -> Callable[[Options], Options]:
    return lambda options: replace(options, loss=replace(options.loss, **changes))


_FLAGS: Final[Mapping[str, Callable[[Options], Options]]] = {
    "rollout": _loss(weighting="rollout"),
    "prompt": _loss(weighting="prompt"),
    "unscaled": _loss(scale=None),
    "prompt-unscaled": _loss(weighting="prompt", scale=None),
    "maxrl": _loss(scale="mean"),
    "kept": _loss(kept="successes"),
    "priced": lambda options: replace(_loss(kept="successes")(options), priced=True),
    "ratio": _loss(ratio=True),
    "kept-failures": _loss(kept="failures"),
    "look=base": lambda options: replace(options, look="base"),
    "look=texts": lambda options: replace(options, look="texts"),
    "look=odds": lambda options: replace(options, look="odds"),
}


def split_rule(rule: str) -> tuple[str, Options]:
    """Split the name of a rule from the options behind it; what is no option belongs to the name.

    Raises:
        ValueError: an option with a value out of range.
    """
    name, found = rule, []
    while "@" in name:
        front, _, last = name.rpartition("@")
        option = _option(last)
        if option is None:
            break
        name = front
        found.append(option)
    options = Options()
    for option in reversed(found):
        options = option(options)
    return name, options


def _option(text: str) -> Callable[[Options], Options] | None:
    """What an option changes; None if the text is no option."""
    if text in _FLAGS:
        return _FLAGS[text]
    key, equals, value = text.partition("=")
    if not equals or key not in ("lr", "step", "group", "cost"):
        return None
    try:
        number = float(value) if key in ("lr", "cost") else int(value.removeprefix("1/"))
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise ValueError(
            f"{text!r} is no option of a rule: write lr=2 (a factor), step=1/2 (a whole divisor), or group=4"
        )
    if key == "lr":
        return lambda options: replace(options, learning_rate=float(number))
    if key == "cost":
        return lambda options: replace(options, step_cost=float(number))
    if key == "group":
        return lambda options: replace(options, min_group=int(number))
    return lambda options: replace(options, divisor=int(number))
