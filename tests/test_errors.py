"""What errors and warnings say of many things at once."""

from __future__ import annotations

import pytest

from tinyalign.errors import first_few, first_line


@pytest.mark.parametrize(
    ("n", "said"),
    [(0, ""), (2, "0; 1"), (3, "0; 1; 2"), (5, "0; 1; 2; and 2 more")],
)
def test_the_first_few_reasons_and_how_many_more(n: int, said: str) -> None:
    assert first_few((str(i) for i in range(n)), most=3) == said


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("\nno\nmore"), "no"), (ValueError(), "ValueError")]
)
def test_the_first_line_of_an_error(error: Exception, said: str) -> None:
    assert first_line(error) == said
