"""Compute stable ids of prompts, and the 64-bit keys under which beliefs are stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

KeyArray = NDArray[np.uint64]


def content_id(content: object) -> str:
    """Compute a stable id from the content of a prompt (text, or a list of chat messages): a 64-bit hash in hex.

    Raises:
        TypeError: content that JSON cannot express; such prompts need an explicit id.
    """
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def prompt_keys(prompt_ids: Sequence[str]) -> KeyArray:
    """Hash prompt ids to 64-bit keys, ``[P]``; the same on every machine and in every process."""
    digests = b"".join([blake2b(prompt_id.encode(), digest_size=8).digest() for prompt_id in prompt_ids])
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
