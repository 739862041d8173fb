"""The same tiny world as the evaluation's."""

from ..evaluation.conftest import perceiver, questions, world  # noqa: F401
