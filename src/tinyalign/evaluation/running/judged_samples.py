"""What an evaluation has judged so far, in memory and, with a folder, on disk as well."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from tinyalign.data.sample import Sample
from tinyalign.errors import EvaluationError
from tinyalign.evaluation.results import (
    PREDICTIONS,
    Prediction,
    Results,
    check_same,
    read_predictions,
    read_results,
    refuse_unknown,
    results_path,
    write_results,
)
from tinyalign.evaluation.running.inputs import references
from tinyalign.evaluation.running.partial_files import (
    JudgedPart,
    append,
    part_path,
    read_parts,
    remove_parts,
    start_part,
)
from tinyalign.evaluation.running.shards import Shard, gather, rank

Finished = tuple[Results, list[Prediction]]


class JudgedSamples:
    """JudgedPart samples; those of earlier runs with the same settings are among them.

    The folder of one evaluation is never written over by another.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        draft: Results,
        shard: Shard | None = None,
        resume: bool = True,
    ) -> None:
        """`draft` has every field that decides predictions; `shard` is this machine's.

        Raises EvaluationError where `out` holds an evaluation with other settings, or one whose
        settings are not known, unless `resume` is False, which drops what is there.
        """
        self.path = None if out is None else results_path(out)
        self.deciding: dict[str, Any] = draft.deciding()
        self.share = (shard or Shard()).of_rank()
        self.judged = JudgedPart()
        if self.path is None:
            return
        if not resume:
            self._clear(shard)
        refuse_unknown(self.path)
        self.judged = read_parts(self.path.parent, self.deciding)

    def finished(self) -> Finished | None:
        """The results of an evaluation that is complete already; rank 0 decides for all."""
        found = None
        if self.path is not None and self.path.is_file():
            results = read_results(self.path)
            check_same(self.path, results.deciding(), self.deciding)
            found = results, read_predictions(self.path)
        return gather(found)[0]

    def start(self, samples: Sequence[Sample]) -> list[int]:
        """Begin to collect; returns which samples are still to be judged here, by index.

        Raises EvaluationError if what was judged before came from other samples.
        """
        mine = self.share.indices(len(samples))
        done = [index for index in mine if index in self.judged.predictions]
        for index in done:
            self._check_sample(samples[index], self.judged.predictions[index])
        if self.path is not None:
            start_part(part_path(self.path.parent, self.share), self.deciding)
        return sorted(set(mine) - set(done))

    def add(self, judged: JudgedPart) -> None:
        """Keep what was judged, on disk before anything else is."""
        if self.path is not None:
            append(part_path(self.path.parent, self.share), judged)
        self.judged.update(judged)

    def join(self) -> JudgedPart:
        """What all ranks, and all shards that wrote into the same folder, have judged."""
        if self.path is not None:
            self.judged.update(read_parts(self.path.parent, self.deciding))
        whole = JudgedPart()
        for judged in gather(self.judged):
            whole.update(judged)
        return whole

    def write(self, results: Results, predictions: Iterable[Prediction]) -> None:
        """Write what is complete, and drop the parts; on rank 0 only."""
        if self.path is not None and rank() == 0:
            write_results(self.path, results, predictions)
            remove_parts(self.path.parent)

    def _clear(self, shard: Shard | None) -> None:
        """Start over: all of it, or of several shards this one's part and what was joined."""
        assert self.path is not None
        if rank() == 0:
            self.path.unlink(missing_ok=True)
            (self.path.parent / PREDICTIONS).unlink(missing_ok=True)
            if shard is None:
                remove_parts(self.path.parent)
        if shard is not None:
            part_path(self.path.parent, self.share).unlink(missing_ok=True)
        gather(None)  # nobody reads before all have cleared

    def _check_sample(self, sample: Sample, before: Prediction) -> None:
        now = (sample.id, sample.instruction, references(sample))
        if now != (before.id, before.instruction, before.references):
            assert self.path is not None
            raise EvaluationError(
                f"{self.path.parent}: was begun on other data: sample {before.id!r} "
                f"({before.instruction!r}) was judged where {sample.id!r} "
                f"({sample.instruction!r}) stands now; choose another folder, or start over with "
                "--no-resume (resume=False)"
            )
