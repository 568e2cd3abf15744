"""Settings of all tests."""

from __future__ import annotations

import os

try:
    from hypothesis import settings
except ImportError:  # the environments of single trainers do without it
    pass
else:
    # No deadline: machines are shared, and a slow example is no wrong one. In CI the same examples every time.
    settings.register_profile("knapsack-rl", deadline=None, derandomize="CI" in os.environ)
    settings.load_profile("knapsack-rl")
