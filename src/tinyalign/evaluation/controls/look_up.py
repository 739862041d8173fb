"""What memory answers by itself: what a model must beat to be more than a search.

Two look-ups, both from the neighbours that the model's own retriever found, at the number and the
temperature that were chosen on training samples: the answer of the nearest entry, and the answer
that the neighbours agree on (of captions the consensus, of short answers the weighted vote).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tinyalign.evaluation.results import CONSENSUS, NEAREST, Prediction

LOOK_UPS = (NEAREST, CONSENSUS)


def look_up(predictions: Sequence[Prediction], kind: str) -> list[Prediction]:
    """`predictions` with what the look-up `kind` said in place of the model's answers.

    "" where nothing was retrieved. Scores and losses, which were the model's, are left out.
    """
    return [
        replace(
            one,
            prediction=one.look_up.get(kind, ""),
            loss_sum=0.0,
            supervised_tokens=0,
            scores={},
        )
        for one in predictions
    ]
