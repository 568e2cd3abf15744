"""The problems of the study, in one file: ``python -m benchmarks.gpu.problems FILE`` draws them with reasoning-gym.

One problem a line, with its part: ``train``, ``heldout``, or ``teach`` for the supervised start.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from knapsack_arena.lab.arithmetic import splits

SIZES = {"train": 1024, "heldout": 256, "teach": 8192}


def write(file: Path, sizes: dict[str, int] = SIZES, seed: int = 3) -> None:
    """Write problems of all families and levels, in a seeded order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    # Easy levels have too few different problems, so that parts come out smaller than asked for.
    wanted = tuple(size * 3 // 2 for size in sizes.values())
    for part, problems in zip(sizes, splits(wanted, seed), strict=True):
        random.Random(f"{seed} {part}").shuffle(problems)
        for problem in problems[: sizes[part]]:
            row = {"part": part, "prompt": f"{problem.prompt}\n", "worked": problem.worked, "source": problem.source}
            lines.append(json.dumps(row))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.problems", description=__doc__)
    parser.add_argument("file", type=Path)
    write(parser.parse_args().file)
