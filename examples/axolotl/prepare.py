"""Write what grpo.yaml trains on: a small warm-started model and prompts with answers. A CPU and seconds are enough.

    python prepare.py && axolotl train grpo.yaml --launcher python

For a run of your own replace `base_model`, `datasets` and `reward_funcs` in the YAML; prompts need a column `prompt`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from knapsack_rl.tasks.embedded import splits
from knapsack_rl.tasks.models import warm_started
from knapsack_rl.tasks.recipe import Recipe

model = warm_started(Recipe(hidden=64, layers=2, intermediate=128, steps=100))
shutil.copytree(model, "model", dirs_exist_ok=True)
rows = [json.dumps(row) for row in splits(train=32, heldout=32)[0]]  # prompt, answer, prompt_id
Path("rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
