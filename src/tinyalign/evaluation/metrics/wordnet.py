"""The nouns of WordNet (Miller, 1995) from its own database files, and how alike two words are.

Reads `index.noun`, `data.noun` and `noun.exc` as Princeton publishes them (format: wndb(5WN)).
Nothing is bundled: operating systems, NLTK's data and the WordNet site have the files.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from tinyalign.errors import EvaluationError
from tinyalign.hashing import hash_bytes

FILES = ("index.noun", "data.noun", "noun.exc")
VARIABLE = "WNSEARCHDIR"
"""WordNet's own environment variable for the folder of its files."""

_ENDINGS = (
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
)
_UP = ("@", "@i")  # hypernym, instance hypernym


class WordNet:
    """Noun senses and their hypernyms. A sense is the byte offset of its line in data.noun."""

    def __init__(self, index: str, data: bytes, exceptions: str) -> None:
        """From the content of the three files. Lines of the licence start with two spaces."""
        self._data = data
        self._senses: dict[str, tuple[int, ...]] = {}
        for words in _rows(index):
            pointers, senses = int(words[3]), int(words[2])
            first = 6 + pointers
            self._senses[words[0]] = tuple(map(int, words[first : first + senses]))
        self._irregular: dict[str, tuple[str, ...]] = {}
        for form, *bases in _rows(exceptions):
            self._irregular[form] = tuple(bases)
        self.hash = hash_bytes(data)
        self._up: dict[int, tuple[str, tuple[int, ...]]] = {}
        self._depths: dict[int, tuple[int, int]] = {}
        self.similarity = lru_cache(maxsize=1 << 16)(self._similarity)

    @classmethod
    def open(cls, folder: str | Path) -> WordNet:
        """From a folder with the three files, or a zip that has them (NLTK's wordnet.zip)."""
        path = Path(folder)
        try:
            if path.is_file():
                index, data, exceptions = _from_zip(path)
            else:
                index, data, exceptions = ((path / name).read_bytes() for name in FILES)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise EvaluationError(
                f"{path}: expected WordNet's files {', '.join(FILES)} ({error})."
            ) from error
        return cls(index.decode(), data, exceptions.decode())

    @classmethod
    def find(cls, folder: str | Path | None = None) -> WordNet:
        """From the folder given, or from where WordNet usually is on this machine.

        Raises EvaluationError that says where it was looked for and how to get it.
        """
        if folder is not None:
            return cls.open(folder)
        for place in usual_places():
            if (place / FILES[1]).is_file() or (place.suffix == ".zip" and place.is_file()):
                return cls.open(place)
        raise EvaluationError(
            "WUPS needs WordNet, and none was found. Install it (Debian and Ubuntu: `apt install "
            "wordnet-base`; elsewhere: `pip install nltk && python -m nltk.downloader wordnet`), "
            f"or name the folder that has {FILES[1]} with --wordnet or in {VARIABLE}; or leave "
            "WUPS out with --no-wups."
        )

    def senses(self, word: str) -> tuple[int, ...]:
        """The senses of a word and of its base forms, most frequent first; () for none.

        A word is looked up as it is written: the database joins words by underscores, so an answer
        of two words has no sense. The public scorer does the same.
        """
        word = word.lower()
        if word in self._irregular:
            bases: Iterable[str] = self._irregular[word]
        else:
            bases = (word[: -len(a)] + b for a, b in _ENDINGS if word.endswith(a))
        forms = dict.fromkeys(form for form in (word, *bases) if form in self._senses)
        return tuple(sense for form in forms for sense in self._senses[form])

    def _similarity(self, a: str, b: str) -> float:
        """Wu-Palmer similarity of the nearest senses of two words; 0 where one has none."""
        pairs = ((x, y) for x in self.senses(a) for y in self.senses(b))
        return max((self.wu_palmer(x, y) for x, y in pairs), default=0.0)

    def wu_palmer(self, a: int, b: int) -> float:
        """2 d / (l_a + l_b) over the deepest common hypernym (Wu & Palmer, 1994).

        d is its longest depth from the root, counted in nodes; l is d plus the shortest way from
        there to the sense. As in NLTK, the deepest is sought by shortest depth, and a way may lead
        up over another common hypernym before it comes down.
        """
        up_a, up_b = self._ancestors(a), self._ancestors(b)
        common = up_a.keys() & up_b.keys()
        if not common:
            return 0.0
        deepest = max(self._depth(sense)[0] for sense in common)
        lowest = [sense for sense in common if self._depth(sense)[0] == deepest]
        chosen = a if a in lowest else min(lowest, key=self._name)
        depth = self._depth(chosen)[1] + 1
        up_chosen = self._ancestors(chosen)
        ways = (min(up[x] + steps for x, steps in up_chosen.items()) for up in (up_a, up_b))
        return 2.0 * depth / (2 * depth + sum(ways))

    def _ancestors(self, sense: int) -> dict[int, int]:
        """Every hypernym of a sense with the fewest steps up to it; itself at 0."""
        steps, front, distance = {sense: 0}, [sense], 0
        while front:
            distance += 1
            front = [up for each in front for up in self._line(each)[1] if up not in steps]
            steps.update(dict.fromkeys(front, distance))
        return steps

    def _depth(self, sense: int) -> tuple[int, int]:
        """(shortest, longest) way to the root."""
        if sense not in self._depths:
            ways = [self._depth(up) for up in self._line(sense)[1]]
            shortest = 1 + min((low for low, _ in ways), default=-1)
            longest = 1 + max((high for _, high in ways), default=-1)
            self._depths[sense] = shortest, longest
        return self._depths[sense]

    def _line(self, sense: int) -> tuple[str, tuple[int, ...]]:
        """(first word, hypernyms) of a sense."""
        if sense not in self._up:
            line = self._data[sense : self._data.index(b"\n", sense)].decode()
            fields = line.partition(" | ")[0].split()
            if fields[:1] != [f"{sense:08d}"]:
                raise EvaluationError(
                    f"data.noun: no sense at byte {sense}; index and data differ in version."
                )
            words = int(fields[3], 16)
            pointers = fields[5 + 2 * words :]
            up = [int(o) for kind, o in zip(pointers[::4], pointers[1::4]) if kind in _UP]
            self._up[sense] = fields[4], tuple(up)
        return self._up[sense]

    def _name(self, sense: int) -> str:
        """NLTK's name of a sense, by which it breaks ties: first word and number of the sense."""
        word = self._line(sense)[0].lower()
        senses = self._senses.get(word, ())
        return f"{word}.n.{senses.index(sense) + 1 if sense in senses else 0:02d}"


def usual_places() -> list[Path]:
    """Folders where WordNet's files may be: the environment's, the system's, NLTK's."""
    named = [os.environ[name] for name in (VARIABLE,) if os.environ.get(name)]
    if os.environ.get("WNHOME"):
        named.append(os.path.join(os.environ["WNHOME"], "dict"))
    system = ["/usr/share/wordnet", "/usr/local/share/wordnet", "/usr/local/WordNet-3.0/dict"]
    nltk = [p for p in os.environ.get("NLTK_DATA", "").split(os.pathsep) if p]
    nltk += [str(Path.home() / "nltk_data"), "/usr/share/nltk_data", "/usr/local/share/nltk_data"]
    corpora = [Path(p) / "corpora" for p in nltk]
    folders = [Path(p) for p in (*named, *system)]
    return [*folders, *(c / "wordnet" for c in corpora), *(c / "wordnet.zip" for c in corpora)]


def _rows(text: str) -> Iterator[list[str]]:
    for line in text.split("\n"):
        if line.strip() and not line.startswith("  "):
            yield line.split()


def _from_zip(path: Path) -> tuple[bytes, ...]:
    with zipfile.ZipFile(path) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        return tuple(archive.read(names[name]) for name in FILES)
