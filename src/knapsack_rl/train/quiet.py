"""Keeps the frameworks' chatter out of what a person reads."""

from __future__ import annotations

import os
import warnings


def quiet_frameworks() -> None:
    """Turn off progress bars and notices; before transformers is imported, and inherited by the arms' processes."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # TRL's own uses of names that transformers is about to retire.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
