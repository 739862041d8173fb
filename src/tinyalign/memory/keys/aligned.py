"""Aligned keys: an entry is found by what its text says, a query by what its image should say.

The paper's key compares a query's image with an entry's image. An entry, though, is read for
its text, so the aligned key puts both on the text's side: an entry's key is its text as a
tf-idf vector in a latent semantic space, a query's is a ridge regression of that vector from the
frozen image features and the instruction. Both maps have a closed form and know nothing of the
LLM.

A regression knows the images that it was fitted on better than new ones, so a training set that
queried with it would see closer neighbours than a user ever does. The maps are therefore
cross-fitted: images fall into folds by their hash, and a training query uses the map fitted
without its own fold (`folds`). Everybody else uses the map fitted on all of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from tinyalign.errors import BankError, ConfigError
from tinyalign.hashing import hash_json, hash_tensors
from tinyalign.memory.keys.folds import N_FOLDS, fold_of
from tinyalign.memory.keys.saved import write_key
from tinyalign.memory.keys.text import PAD_ID

FORMAT_VERSION = 1
DIM = 512
BASIS_SEED = 20251284
RIDGE = 1.0
"""Ridge penalty in units of the inputs' mean variance."""


class AlignedKeyFunction:
    """Keys (B, d_k) in the semantic space of the corpus' texts.

    `keys` makes queries from vision features (B, n, D) and instruction ids (B, L);
    `entry_keys` makes the keys of entries from the ids of their whole text.
    """

    kind = "aligned"
    alpha = 1.0
    uses_text = True
    uses_image = True

    def __init__(
        self,
        image_mean: Tensor,
        idf: Tensor,
        basis: Tensor,
        text_mean: Tensor,
        instruction_mean: Tensor,
        maps: Tensor,
    ) -> None:
        """image_mean (D,), idf (V,), basis (V, d), text_mean (d,), instruction_mean (d,),
        maps (F + 1, D + d, d): one per fold, fitted without it, then the one fitted on all.

        Raises ConfigError if the shapes do not go together.
        """
        expected = (len(image_mean) + basis.shape[1], basis.shape[1])
        if basis.shape[0] != len(idf) or maps.shape[1:] != expected or maps.shape[0] < 2:
            raise ConfigError(
                f"aligned keys: idf {tuple(idf.shape)}, basis {tuple(basis.shape)} and maps "
                f"{tuple(maps.shape)} do not go together; expected maps (F + 1, {expected})"
            )
        self.image_mean, self.idf, self.basis = image_mean, idf, basis
        self.text_mean, self.instruction_mean, self.maps = text_mean, instruction_mean, maps

    @property
    def image_width(self) -> int:
        """D, the width of the vision features it takes."""
        return self.image_mean.shape[0]

    @property
    def dim(self) -> int:
        """d_k, the length of a key."""
        return self.basis.shape[1]

    @property
    def n_folds(self) -> int:
        """Folds of the cross-fit."""
        return len(self.maps) - 1

    @cached_property
    def hash(self) -> str:
        """Content hash of the settings and the tensors."""
        return hash_json([self.kind, FORMAT_VERSION, hash_tensors(self.tensors())])

    @torch.no_grad()
    def entry_keys(
        self, vision_features: Tensor | None, query_ids: Tensor, text_ids: Tensor
    ) -> Tensor:
        """Keys of entries (B, d_k), fp32, unit length, from the ids (B, L) of their whole text.

        The image and the instruction are not looked at: they speak through the text.
        """
        return normalize(self._semantic(text_ids) - self.text_mean.to(text_ids.device), dim=-1)

    @torch.no_grad()
    def keys(
        self,
        vision_features: Tensor | None,
        query_ids: Tensor | None = None,
        query_mask: Tensor | None = None,
        folds: Sequence[int] | None = None,
    ) -> Tensor:
        """Queries (B, d_k), fp32, unit length, on the device of the input.

        folds: for images of the fitting corpus, the fold of each (`fold_of`), so that its own
        text has no part in its query; leave it out for all other images. A query without an
        image is the text itself, in the same space.
        """
        if vision_features is None:
            if query_ids is None:
                raise ConfigError("a query needs vision features, instruction ids, or both")
            ids = query_ids if query_mask is None else query_ids * query_mask.to(query_ids.dtype)
            return self.entry_keys(None, ids, ids)
        if vision_features.ndim != 3 or vision_features.shape[-1] != self.image_width:
            raise ConfigError(
                f"vision features must be (B, n, {self.image_width}) for this key function, "
                f"found {tuple(vision_features.shape)}: use the encoder it was fitted with"
            )
        if query_ids is not None and query_mask is not None:
            query_ids = query_ids * query_mask.to(query_ids.dtype)
        inputs = self._inputs(vision_features.float(), query_ids)  # (B, D + d)
        which = [self.n_folds] * len(inputs) if folds is None else list(folds)
        if len(which) != len(inputs):
            raise ConfigError(f"{len(which)} folds for {len(inputs)} images in one batch")
        queries = inputs.new_zeros(len(inputs), self.dim)
        index = torch.tensor(which, device=inputs.device)
        for fold in sorted(set(which)):
            rows = index == fold
            queries[rows] = inputs[rows] @ self.maps[fold].to(inputs.device)
        return normalize(queries, dim=-1)

    def _semantic(self, ids: Tensor) -> Tensor:
        """Unit tf-idf of token presence, in the semantic space: (B, L) -> (B, d)."""
        return _tf_idf(ids, self.idf.to(ids.device)) @ self.basis.to(ids.device)

    def _inputs(self, features: Tensor, ids: Tensor | None) -> Tensor:
        image = features.mean(dim=1) - self.image_mean.to(features.device)  # (B, n, D) -> (B, D)
        if ids is None:
            text = features.new_zeros(len(features), self.dim)
        else:
            text = self.asked(ids.to(features.device))
        return torch.cat([image, text], dim=-1)

    def asked(self, ids: Tensor) -> Tensor:
        """Instructions (B, L) in the semantic space, centred: (B, d); zeros without any word."""
        text = self._semantic(ids) - self.instruction_mean.to(ids.device)
        return text * (ids != PAD_ID).any(dim=1, keepdim=True)

    # -- saving, loading ----------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, on the CPU in float32."""
        names = ("image_mean", "idf", "basis", "text_mean", "instruction_mean", "maps")
        return {name: getattr(self, name).detach().cpu().float().contiguous() for name in names}

    def save(self, folder: str | Path) -> None:
        """Write key.json and key.safetensors."""
        settings = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "alpha": self.alpha,
            "dim": self.dim,
            "hash": self.hash,
        }
        write_key(folder, self.tensors(), settings)

    @classmethod
    def load(cls, folder: str | Path) -> AlignedKeyFunction:
        """Read what `save` wrote. BankError names the file that is missing or damaged."""
        path = Path(folder) / "key.safetensors"
        try:
            made = cls(**load_file(path))
            wanted = json.loads((Path(folder) / "key.json").read_text())["hash"]
        except (OSError, SafetensorError, TypeError, ValueError, KeyError, ConfigError) as error:
            raise BankError(f"{path}: not a readable key function ({error})") from error
        if made.hash != wanted:
            raise BankError(f"{path}: content does not match key.json; it was changed or damaged")
        return made


# -- fitting -----------------------------------------------------------------------------------


def fit_aligned(
    pooled: Tensor,
    text_ids: Tensor,
    instruction_ids: Tensor,
    image_hashes: Sequence[str],
    vocab_size: int,
    *,
    dim: int = DIM,
    ridge: float = RIDGE,
    n_folds: int = N_FOLDS,
) -> AlignedKeyFunction:
    """Fit the key function on a corpus of N pairs.

    pooled (N, D): mean vision features; text_ids and instruction_ids (N, L), padding 0;
    image_hashes: N hexadecimal hashes, which decide the folds. Deterministic.
    Raises ConfigError for an empty corpus.
    """
    if not len(pooled):
        raise ConfigError("cannot fit a key function on no pairs: the corpus is empty")
    pooled = pooled.float()
    idf = _inverse_document_frequency(text_ids, vocab_size)
    basis = _semantic_basis(text_ids, idf, min(dim, vocab_size))
    text = torch.cat([_tf_idf(b, idf) @ basis for b in text_ids.split(4096)])  # (N, d)
    said = (instruction_ids != PAD_ID).any(dim=1)
    asked = torch.cat([_tf_idf(b, idf) @ basis for b in instruction_ids.split(4096)])
    instruction_mean = asked[said].mean(dim=0) if said.any() else torch.zeros(basis.shape[1])
    asked = (asked - instruction_mean) * said[:, None]
    text_mean, image_mean = text.mean(dim=0), pooled.mean(dim=0)
    inputs = torch.cat([pooled - image_mean, asked], dim=-1)
    folds = torch.tensor([fold_of(name, n_folds) for name in image_hashes])
    maps = _cross_fitted(inputs, text - text_mean, folds, n_folds, ridge, pooled.shape[1])
    return AlignedKeyFunction(image_mean, idf, basis, text_mean, instruction_mean, maps)


def _tf_idf(ids: Tensor, idf: Tensor) -> Tensor:
    """Token presence weighted by idf, at unit length: (B, L) -> (B, V)."""
    present = torch.zeros(len(ids), len(idf), device=ids.device)
    present.scatter_(1, ids, 1.0)
    present[:, PAD_ID] = 0.0
    return normalize(present * idf, dim=-1)


def _inverse_document_frequency(ids: Tensor, vocab_size: int) -> Tensor:
    counts = torch.zeros(vocab_size)
    for row_ids in ids.split(4096):
        present = torch.zeros(len(row_ids), vocab_size).scatter_(1, row_ids, 1.0)
        counts += present.sum(dim=0)
    return torch.log((1 + len(ids)) / (1 + counts))


def _semantic_basis(ids: Tensor, idf: Tensor, dim: int) -> Tensor:
    """The `dim` leading right singular vectors (V, dim) of the corpus' tf-idf matrix, seeded."""
    gram = torch.zeros(len(idf), len(idf))
    for block in ids.split(4096):
        rows = _tf_idf(block, idf)
        gram += rows.T @ rows
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(BASIS_SEED)
        _, _, vectors = torch.svd_lowrank(gram, q=dim, niter=3)
    return vectors.contiguous()


def _cross_fitted(
    inputs: Tensor, targets: Tensor, folds: Tensor, n_folds: int, ridge: float, image_width: int
) -> Tensor:
    """Ridge maps (F + 1, D + d, d), from one pass of normal equations per fold."""
    grams = [(inputs[folds == f].T @ inputs[folds == f]) for f in range(n_folds)]
    crosses = [(inputs[folds == f].T @ targets[folds == f]) for f in range(n_folds)]
    gram, cross = torch.stack(grams).sum(0), torch.stack(crosses).sum(0)
    maps = []
    for g, c in [*((gram - g, cross - c) for g, c in zip(grams, crosses)), (gram, cross)]:
        penalty = g.diagonal().clone()
        # Image and instruction differ in scale: each is penalised by its own mean variance.
        penalty[:image_width] = penalty[:image_width].mean().clamp(min=1e-12)
        penalty[image_width:] = penalty[image_width:].mean().clamp(min=1e-12)
        maps.append(torch.linalg.solve(g + ridge * torch.diag(penalty), c))
    return torch.stack(maps)


__all__ = ["AlignedKeyFunction", "fit_aligned", "fold_of"]
