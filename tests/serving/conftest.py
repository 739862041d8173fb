"""The same tiny world as the evaluation's."""

from ..evaluation.conftest import compressor, questions, world  # noqa: F401
