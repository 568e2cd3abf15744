"""The one error that a user of the tasks can cause."""

from __future__ import annotations


class TaskError(ValueError):
    """A model, data set, column, reward or setting that cannot be used; the message is one line."""
