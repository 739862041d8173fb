"""`tinyalign ask`: one question about one image."""

from __future__ import annotations

from dataclasses import dataclass, field

from tinyalign.cli.front.options import POSITIONAL
from tinyalign.cli.front.output import columns, say, say_json, say_table
from tinyalign.cli.search_options import AnswerOptions
from tinyalign.errors import ConfigError


@dataclass(kw_only=True)
class AskArgs(AnswerOptions):
    """Arguments of `tinyalign ask`."""

    question: str = field(default="", metadata=POSITIONAL)
    """What to ask; without it the model says what it was trained to say unasked: a caption."""
    model: str
    """A model's folder, or a run folder."""
    bank: str | None = None
    """A memory bank's folder or Milvus URI, or a run folder, whose bank is taken; without it the
    model answers without memory."""
    image: str
    """The image asked about."""
    show_memories: bool = False
    """Also show the memories that were retrieved, and how similar they are to the question."""
    k: int | None = None
    """Memories to retrieve; by default the model's own number."""
    max_new_tokens: int = 32
    """Tokens the answer may have."""
    seed: int = 0
    """Of what is drawn: samples, where --best-of asks for several answers."""
    device: str = "auto"
    """"auto" takes a GPU where there is one; or "cpu", "cuda"."""
    json: bool = False
    """Print question, answer and memories as JSON."""


def ask(args: AskArgs) -> int:
    """Ask a model about an image; the answer is the same as of transformers' pipeline."""
    from transformers import set_seed

    from tinyalign.cli.unread_question import warn_of_unread_question
    from tinyalign.data.images import load_image
    from tinyalign.data.sample import ImageRef
    from tinyalign.model.decoding import Decoding
    from tinyalign.serving.ask import answer
    from tinyalign.serving.load import load

    if args.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens must be at least 1, found {args.max_new_tokens}")
    if args.show_memories and args.bank is None:
        raise ConfigError("--show-memories needs a --bank that memories come from")
    image = load_image(ImageRef(path=args.image))  # before the model: this fails fast
    decoding = Decoding(args.max_new_tokens, args.beams, args.best_of)
    if args.best_of > 1 and args.bank is None:
        raise ConfigError("--best-of chooses by what neighbours say; it needs a --bank")
    loaded = load(
        args.model, args.bank, k=args.k, device=args.device, engine=args.engine,
        recall=args.recall, copy=args.copy,
    )  # fmt: skip
    if args.question:
        warn_of_unread_question(loaded.processor)
    set_seed(args.seed)
    found = answer(loaded.model, loaded.processor, image, args.question, decoding=decoding)
    if args.json:
        memories = [{"id": i, "text": t, "similarity": s} for i, t, s in found.memories]
        say_json({"question": args.question, "answer": found.text, "memories": memories})
        return 0
    say(found.text)
    if args.show_memories:
        rows = [(similarity, name, text) for name, text, similarity in found.memories]
        say_table(columns(("similarity", "id", "memory"), rows))
    return 0
