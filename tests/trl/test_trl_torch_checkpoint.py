"""A session's state in a checkpoint of PyTorch's, loaded without unpickling."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch.utils import _pytree

from knapsack_rl import AllocationConfig, PromptFeatures, Session


def test_state_as_tensors_in_a_checkpoint_that_is_loaded_with_weights_only() -> None:
    session = Session(AllocationConfig())
    for step in range(3):
        features = PromptFeatures(np.random.default_rng(step).standard_normal((32, 3)), np.zeros((32, 1)))
        plan = session.plan(range(32), features=features)
        ids = [prompt_id for prompt_id, count in plan for _ in range(count)]
        session.observe(step, ids, [1.0, 0.0] * 32)
    session.plan(range(32), features=features)  # under way
    file = io.BytesIO()
    torch.save(_pytree.tree_map_only(np.ndarray, torch.from_numpy, session.state_dict()), file)
    file.seek(0)
    resumed = Session(AllocationConfig())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for each in (session, resumed):
        (open_plan,) = each.open_plans
        each.observe(3, [prompt_id for prompt_id, count in open_plan for _ in range(count)], [1.0, 0.0] * 32)
    assert resumed.plan(range(32), features=features).counts_P.tolist() == (
        session.plan(range(32), features=features).counts_P.tolist()
    )
