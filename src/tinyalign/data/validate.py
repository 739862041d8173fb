"""Look at every sample before training does, and say what is wrong with which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinyalign.data.images import MissingImageError, load_image
from tinyalign.data.readers.shards.dataset import ShardDataset
from tinyalign.data.readers.shards.stream import SampleStream, StreamReport
from tinyalign.data.sample import ImageRef, Sample
from tinyalign.errors import DataError
from tinyalign.hashing import hash_bytes
from tinyalign.log import progress

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerBase

KINDS = {
    "unreadable": "the record can't be read as a sample",
    "missing_image": "the image file is not there",
    "corrupt_image": "the image can't be decoded",
    "empty_conversation": "no turns, or an assistant turn with nothing in it",
    "odd_conversation": "user and assistant don't take turns, user first and assistant last; or "
    "<image> tags and images differ in number",
    "over_long": "more text tokens than max_length",
    "duplicate_id": "an earlier sample has the same id",
    "broken_shard": "the shard can't be read, or not to its end",
}


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one sample. `kind` is a key of `KINDS`."""

    kind: str
    id: str
    detail: str


@dataclass
class Report:
    """What `validate` found among `n` samples."""

    n: int
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def counts(self) -> dict[str, int]:
        """Problems by kind, every kind listed."""
        found = Counter(problem.kind for problem in self.problems)
        return {kind: found[kind] for kind in KINDS}

    def table(self, examples: int = 3) -> Table:
        """A table with a line for every kind, its count and its first few sample ids."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=f"{self.n} samples, {len(self.problems)} problems")
        table.add_column("problem")
        table.add_column("count", justify="right")
        table.add_column("meaning")
        table.add_column("first samples", overflow="fold")
        for kind, count in self.counts.items():
            ids = [problem.id for problem in self.problems if problem.kind == kind][:examples]
            table.add_row(kind, str(count), KINDS[kind], escape(", ".join(ids)))
        return table

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        problems = [{"kind": p.kind, "id": p.id, "detail": p.detail} for p in self.problems]
        return {"n": self.n, "ok": self.ok, "counts": self.counts, "problems": problems}


def validate(
    dataset: Sequence[Sample] | SampleStream,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = 2048,
) -> Report:
    """Read every sample and decode every image once; of a stream, which must have an end, too.

    Over-long samples are looked for only with a `tokenizer`; the count is of the text's tokens,
    without template, image or memory tokens.
    """
    report = Report(n=0)
    ids: set[str] = set()
    images: dict[str, Problem | None] = {}
    total = len(dataset) if isinstance(dataset, Sequence) else None
    with progress("validate", total=total) as advance:
        for index, sample in enumerate(_each(dataset)):
            report.n += 1
            if isinstance(sample, DataError):
                report.problems.append(Problem("unreadable", f"#{index}", str(sample)))
            else:
                if sample.id in ids:
                    report.problems.append(Problem("duplicate_id", sample.id, f"sample #{index}"))
                ids.add(sample.id)
                report.problems += _of_conversation(sample)
                report.problems += _of_images(sample, images)
                if tokenizer is not None:
                    report.problems += _of_length(sample, tokenizer, max_length)
            advance(1)
    if isinstance(dataset, (SampleStream, ShardDataset)):
        report.problems += _of_shards(dataset.report)
    return report


def _each(dataset: Sequence[Sample] | SampleStream) -> Iterator[Sample | DataError]:
    """Every sample, or why it can't be read."""
    if not isinstance(dataset, Sequence):
        yield from dataset
        return
    for index in range(len(dataset)):
        try:
            yield dataset[index]
        except DataError as error:
            yield error


def _of_shards(found: StreamReport) -> list[Problem]:
    broken = [Problem("broken_shard", name, str(one)) for name, one in found.shards.items()]
    records = [Problem("unreadable", name, reason) for name, reason in found.records.items()]
    return broken + records


def _of_conversation(sample: Sample) -> list[Problem]:
    turns = [message for message in sample.messages if message.role != "system"]
    answers = [message for message in turns if message.role == "assistant"]
    problems = []
    if not answers:
        problems.append(Problem("empty_conversation", sample.id, "no assistant turn"))
    elif any(not message.text.strip() for message in answers):
        problems.append(Problem("empty_conversation", sample.id, "an empty assistant turn"))
    roles = [message.role for message in turns]
    expected = ["user", "assistant"] * (len(roles) // 2)
    if sample.image_tags not in (0, len(sample.images)):
        detail = f"<image> tags in its text: {sample.image_tags}, images: {len(sample.images)}"
        problems.append(Problem("odd_conversation", sample.id, detail))
    if answers and roles != expected:
        problems.append(Problem("odd_conversation", sample.id, f"turns: {', '.join(roles)}"))
    elif answers and not sample.images and any(not turn.text.strip() for turn in turns[::2]):
        detail = "an empty user turn and no image"
        problems.append(Problem("odd_conversation", sample.id, detail))
    return problems


def _of_images(sample: Sample, known: dict[str, Problem | None]) -> list[Problem]:
    """Problems of the sample's images; each image is decoded once however many samples share it."""
    problems = []
    for ref in sample.images:
        key = hash_bytes(ref.data) if ref.data is not None else ref.name
        if key not in known:
            known[key] = _of_image(ref)
        problem = known[key]
        if problem is not None:
            problems.append(Problem(problem.kind, sample.id, problem.detail))
    return problems


def _of_image(ref: ImageRef) -> Problem | None:
    try:
        load_image(ref)
    except DataError as error:
        missing = isinstance(error, MissingImageError)
        return Problem("missing_image" if missing else "corrupt_image", "", str(error))
    return None


def _of_length(
    sample: Sample, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> list[Problem]:
    texts = [message.text for message in sample.messages]
    if not texts:
        return []
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    n = sum(len(row) for row in ids)
    if n <= max_length:
        return []
    return [Problem("over_long", sample.id, f"{n} tokens of text, max_length is {max_length}")]
