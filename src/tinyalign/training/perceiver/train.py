"""Training the Perceiver: self-supervised on pairs, so that an LLM can read its latents linearly.

Latent j predicts token j through one shared linear map, the last latents together the pooled
image features. Nothing here knows an LLM.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from tinyalign.data.images import load_image
from tinyalign.data.sample import Sample
from tinyalign.errors import ConfigError
from tinyalign.hashing import hash_bytes
from tinyalign.log import logger, progress
from tinyalign.memory.keys.text import PAD_ID, normalise
from tinyalign.memory.perceiver import Perceiver, train_tokenizer
from tinyalign.model.device import multiplies_bfloat16
from tinyalign.model.perceiver import PerceiverNetwork, PerceiverNetworkConfig
from tinyalign.training.caches.features import Features
from tinyalign.training.perceiver.fit_keys import fit_key_function
from tinyalign.training.perceiver.text_loss import TextScore, silence_loss, text_loss, text_targets
from tinyalign.training.recipe.memory import PerceiverTraining
from tinyalign.vocabulary import KeyKind

REPORT = "report.json"


@dataclass
class FeatureStatistics:
    """Channel means and spreads of the corpus, float32: of tokens, and of pooled features (D,)."""

    pooled_mean: Tensor
    pooled_std: Tensor
    normed_mean: Tensor
    """Of tokens after the Perceiver's own normalisation, without its weights."""
    normed_std: Tensor


def train_perceiver(
    samples: Sequence[Sample],
    features: Features,
    out: str | Path,
    args: PerceiverTraining | None = None,
    *,
    key: KeyKind = "pooled",
    alpha: float = 0.4,
    seed: int = 0,
    device: str | torch.device = "cpu",
    trained: bool = True,
) -> Perceiver:
    """Train tokenizer, Perceiver and key function on pairs; write them and a report into `out`.

    features: of the same samples, with one image or more each. Samples without an image or with
    an unusable one are left out. trained=False stops after the Perceiver's first random weights:
    the control, with the same tokenizer and the same keys. `out`/report.json holds what was
    measured on held-out images.

    Raises ConfigError when fewer than two images are left to learn from and to measure on.
    """
    args = args or PerceiverTraining()
    torch.manual_seed(seed)
    usable = [i for i in features.usable() if features.rows[i]]
    train, held_out = split_by_image(features, usable, args)
    texts = [samples[i].text for i in usable]
    tokenizer = train_tokenizer(texts, args.vocab_size)
    standard = _measure(features, usable)
    network = start_perceiver(features, tokenizer, standard, args)
    network.to(torch.device(device))  # type: ignore[arg-type]
    key_function = fit_key_function(samples, features, usable, tokenizer, key, alpha)
    perceiver = Perceiver(network, tokenizer, key_function)
    trainer = _Training(perceiver, samples, features, standard, args, torch.device(device))
    started = time.monotonic()
    steps = trainer.run(train, seed) if trained else 0
    report = {
        "pairs": len(train),
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
        "vocabulary": tokenizer.get_vocab_size(),
        "settings": asdict(args),
        "seed": seed,
        **trainer.report(held_out),
    }
    _fold_standard(network, standard)
    perceiver.to("cpu")
    perceiver.save(out)
    (Path(out) / REPORT).write_text(json.dumps(report, indent=2), encoding="utf-8")
    _tell(report)
    return perceiver


def split_by_image(
    features: Features, usable: Sequence[int], args: PerceiverTraining
) -> tuple[list[int], list[int]]:
    """(train, held-out) sample indices; all texts of an image fall on the same side.

    Decided by the image's hash alone, so it is the same on every run.
    """
    hashes = features.image_hashes()
    images = sorted({hashes[i] for i in usable}, key=lambda h: hash_bytes(f"split|{h}".encode()))
    wanted = min(max(1, round(args.held_out * len(images))), args.held_out_limit)
    if len(images) < 2:
        raise ConfigError(
            f"{len(images)} usable images to train the Perceiver on; at least 2 are needed, one "
            "of them to measure it on"
        )
    kept = set(images[:wanted])
    train = [i for i in usable if hashes[i] not in kept]
    return train, [i for i in usable if hashes[i] in kept]


def _measure(features: Features, usable: Sequence[int], limit: int = 2000) -> FeatureStatistics:
    rows = list(dict.fromkeys(features.rows[i][-1] for i in usable))
    rows = rows[:: max(1, len(rows) // limit)]
    width, count = features.source.row_shape[1], 0
    pooled: list[Tensor] = []
    total, square = torch.zeros(width).double(), torch.zeros(width).double()
    for start in range(0, len(rows), 64):
        block = features.of_rows(rows[start : start + 64])  # (b, n, D)
        pooled.append(block.mean(dim=1))
        normed = nn.functional.layer_norm(block, block.shape[-1:]).flatten(0, 1).double()
        total += normed.sum(dim=0)
        square += normed.square().sum(dim=0)
        count += len(normed)
    means = torch.cat(pooled)
    mean = total / count
    spread = (square / count - mean.square()).clamp(min=0).sqrt()
    pooled_std = means.std(dim=0, unbiased=False)
    return FeatureStatistics(
        means.mean(dim=0), pooled_std + 1e-3 * pooled_std.mean() + 1e-6,
        mean.float(), spread.float() + 1e-3,
    )  # fmt: skip


def start_perceiver(
    features: Features, tokenizer: Tokenizer, standard: FeatureStatistics, args: PerceiverTraining
) -> PerceiverNetwork:
    """A Perceiver at its first weights, from torch's global generator.

    Positions and latents start at N(0, 1): at the usual 0.02 all positions look alike, and one
    epoch ends at 40 % token accuracy instead of 98 %.
    """
    n_tokens, width = features.source.row_shape
    config = PerceiverNetworkConfig(
        input_mode=args.input_mode,
        feature_dim=width,
        max_image_tokens=n_tokens,
        vocab_size=max(tokenizer.get_vocab_size(), 1),
        max_text_tokens=args.max_text_tokens,
    )
    network = PerceiverNetwork(config)
    with torch.no_grad():
        for table in (
            network.token_embedding.weight,
            network.text_position.weight,
            network.image_position.weight,
            network.trunk.embeddings.latents,
        ):
            nn.init.normal_(table)
        for layer in (network.image_projection, network.text_head, network.image_head):
            layer.reset_parameters()
        if isinstance(network.image_norm, nn.LayerNorm):
            network.image_norm.weight.copy_(1 / standard.normed_std)
            network.image_norm.bias.copy_(-standard.normed_mean / standard.normed_std)
    return network


class _Training:
    """The loop, and what its batches are made of."""

    def __init__(
        self,
        perceiver: Perceiver,
        samples: Sequence[Sample],
        features: Features,
        standard: FeatureStatistics,
        args: PerceiverTraining,
        device: torch.device,
    ) -> None:
        self.perceiver, self.network = perceiver, perceiver.network
        self.samples, self.features, self.args, self.device = samples, features, args, device
        self.mean = standard.pooled_mean.to(device)
        self.std = standard.pooled_std.to(device)
        self.generator = torch.Generator()  # of random texts

    def n_steps(self, n_pairs: int) -> int:
        """At least `min_steps`, at least `epochs`, at most `max_steps`."""
        each = max(1, n_pairs // self.args.batch_size)
        steps = max(round(self.args.epochs * each), self.args.min_steps, 1)
        return steps if self.args.max_steps is None else min(steps, self.args.max_steps)

    def run(self, train: list[int], seed: int) -> int:
        """Train; returns the number of steps."""
        args, steps = self.args, self.n_steps(len(train))
        params = list(self.network.parameters())
        optimizer = torch.optim.AdamW(params, args.learning_rate, weight_decay=args.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, args.learning_rate, total_steps=max(steps, 2), pct_start=0.1
        )
        logger.info("perceiver: %d steps of %d pairs, of %d", steps, args.batch_size, len(train))
        self.network.train()
        self.generator.manual_seed(seed)
        batches = _batches(train, args.batch_size, seed)
        with progress("Training the Perceiver", steps) as advance:
            for step in range(steps):
                loss, text, image = self.losses(next(batches))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(params, 1.0)
                optimizer.step()
                schedule.step()
                if step % 100 == 0 or step == steps - 1:
                    logger.info("perceiver: step %d text %.3f image %.3f", step, text, image)
                advance(1)
        self.network.eval()
        return steps

    def texts(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(text ids (B, L), mask (B, L)); some texts are random words where the settings say so."""
        ids, mask = self.perceiver.encode_text([self.samples[i].text for i in indices])
        if not self.args.random_texts:
            return ids, mask
        chosen = torch.rand(len(ids), 1, generator=self.generator) < self.args.random_texts
        words = self.network.config.vocab_size
        drawn = torch.randint(PAD_ID + 1, words, ids.shape, generator=self.generator)
        return torch.where(chosen & mask.bool(), drawn, ids), mask

    def latents(self, indices: Sequence[int], ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(latents (B, 32, 96) float32, standardised pooled features (B, D))."""
        features = self.features.batch(indices).to(self.device)
        inputs: dict[str, Tensor] = {"image_features": features}
        if self.args.input_mode == "pixels":
            images = [load_image(self.samples[i].images[-1]) for i in indices]
            inputs = {"pixel_values": self.perceiver.pixels(images).to(self.device)}
        fast = multiplies_bfloat16(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            latents = self.network(ids.to(self.device), mask.to(self.device), **inputs)
        pooled = (features.mean(dim=1) - self.mean) / self.std
        return latents.float(), pooled

    def losses(self, indices: Sequence[int]) -> tuple[Tensor, float, float]:
        """(loss, text part, image part) of a batch."""
        ids, mask = self.texts(indices)
        latents, pooled = self.latents(indices, ids, mask)
        targets = text_targets(ids, self.network.config.n_text_latents)
        logits = self.network.text_logits(latents)
        text = text_loss(logits, _on(targets, self.device))
        if self.args.silence:
            text = text + silence_loss(logits, mask.to(self.device))
        image = nn.functional.mse_loss(self.network.image_readout(latents), pooled)
        return text + self.args.image_weight * image, text.item(), image.item()

    @torch.no_grad()
    def report(self, held_out: Sequence[int]) -> dict[str, object]:
        """What can be read back from the latents of pairs whose images were not trained on."""
        score, squared, total = TextScore(), 0.0, 0.0
        room = self.network.config.n_text_latents
        rows = self.perceiver.tokenizer.encode_batch(
            [normalise(self.samples[i].text) for i in held_out]
        )
        n_tokens = [len(row.ids) for row in rows]
        distinct = len({self.features.rows[i][-1] for i in held_out})
        for start in range(0, len(held_out), self.args.batch_size):
            batch = held_out[start : start + self.args.batch_size]
            ids, mask = self.perceiver.encode_text([self.samples[i].text for i in batch])
            latents, pooled = self.latents(batch, ids, mask)
            targets = _on(text_targets(ids, room), self.device)
            score.add(self.network.text_logits(latents), targets)
            squared += (self.network.image_readout(latents) - pooled).square().sum().item()
            total += (pooled - pooled.mean(dim=0)).square().sum().item()
        share = 1 / max(1, len(n_tokens))
        return {
            "held_out_pairs": len(held_out),
            "token_accuracy": score.token_accuracy,
            "image_r2": 1 - squared / total if distinct > 1 else None,
            "long_texts": share * sum(n > room for n in n_tokens),
            "long_text_recall": score.long_text_recall,
            "cut_texts": share * sum(n > self.args.max_text_tokens for n in n_tokens),
        }


def _on(targets, device: torch.device):  # type: ignore[no-untyped-def]
    moved = {name: value.to(device) for name, value in vars(targets).items()}
    return type(targets)(**moved)


def _batches(indices: list[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches without end, reshuffled each pass."""
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(indices))
    while True:
        order = torch.randperm(len(indices), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield [indices[i] for i in order[start : start + size]]


def _fold_standard(network: PerceiverNetwork, standard: FeatureStatistics) -> None:
    """Put the standardisation into the image read-out, which then gives plain pooled features."""
    head = network.image_head
    std = standard.pooled_std.to(head.weight.device)
    with torch.no_grad():
        head.weight.mul_(std[:, None])
        head.bias.mul_(std).add_(standard.pooled_mean.to(std.device))


def _tell(report: dict) -> None:
    def shown(name: str, form: str) -> str:
        value = report[name]
        return "n/a" if value is None else format(value, form)

    logger.info(
        "perceiver: %d held-out pairs, %s of tokens read back, image R2 %s; %s of texts longer "
        "than the latents, with %s of their tokens recalled; %.0f s",
        report["held_out_pairs"],
        shown("token_accuracy", ".1%"),
        shown("image_r2", ".2f"),
        shown("long_texts", ".1%"),
        shown("long_text_recall", ".1%"),
        report["seconds"],
    )
