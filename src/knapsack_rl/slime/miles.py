"""What miles's flags name; written against commit 31f1ca961a94cb860cec3b2dea34ec332bfa8f76, and not run end to end."""

from knapsack_rl.slime.source import hooks_of, post_process

__all__ = ["DataSource", "generate", "post_process"]

DataSource, generate = hooks_of("miles")
