"""What memories answer by themselves."""

from __future__ import annotations

from tinyalign.evaluation.controls.memory_alone import memory_alone
from tinyalign.evaluation.results import Prediction

from ..conftest import World


def answered(*memories: str) -> Prediction:
    return Prediction(
        id="one", image_id="image", instruction="what is it?", prediction="of the model",
        references=("a dog",), loss_sum=2.0, supervised_tokens=3, memory_ids=memories,
        scores={"accuracy": 1.0},
    )  # fmt: skip


def test_the_most_similar_memory_answers_without_its_question(world: World) -> None:
    bank = world.retriever.bank
    entries = [bank.entry(row) for row in (3, 0, 7)]
    told = memory_alone([answered(one.id, bank.ids[5]) for one in entries], bank)
    for one, entry in zip(told, entries):
        assert entry.text.endswith(one.prediction)
        assert entry.text.removeprefix(entry.instruction).strip() == one.prediction
        assert (one.loss_sum, one.supervised_tokens, one.scores) == (0.0, 0, {})
        assert one.references == ("a dog",)
    assert len({one.prediction for one in told}) > 1


def test_where_nothing_was_retrieved_there_is_no_answer(world: World) -> None:
    [told] = memory_alone([answered()], world.retriever.bank)
    assert told.prediction == ""
