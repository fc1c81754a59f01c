"""More text for the teacher to label, made of the user's own.

TinyBERT (Jiao et al. 2020, https://arxiv.org/abs/1909.10351), section 3.2 and algorithm 1, beside the
other operations of `pocketlm.data.augment`.

Deviations: those named in `pocketlm.data.augment` and `pocketlm.models.word_candidates`; a teacher
without a language-model head gets one that is tuned on the user's text (`pocketlm.models.masked_lm`); the
new texts are labelled by the teacher, where TinyBERT's code leaves them the label of the old.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pocketlm.artifact import Artifact, write_json
from pocketlm.data.augment import (
    OPERATIONS,
    Augmenter,
    Operation,
    Rates,
    augmented,
)
from pocketlm.data.examples import MADE, load_pool, load_split, save_texts
from pocketlm.data.sample import few, passes
from pocketlm.errors import RecipeError, storage_errors
from pocketlm.models.load import EVALUATION_BATCH
from pocketlm.models.masked_lm import (
    IGNORED,
    MaskedLM,
    frequencies_of,
    load_masked_lm,
    mask_pieces,
    mask_token,
    masked_lm_loss,
)
from pocketlm.models.word_candidates import whole_words, word_candidates
from pocketlm.stage import Context
from pocketlm.tokenization.encode import load_tokenizer
from pocketlm.train import Precision, Settings, computes_half, train

EVALUATED = 256
Texts = tuple[str, ...]


def _default_operations() -> dict[Operation, float]:
    return {"replace": 1.0, "spans": 1.0, "crossover": 1.0, "mask": 1.0}


@dataclass(frozen=True)
class Augment:
    """Make new texts of those of train and the unlabelled ones.

    Args:
        operations: How often each operation makes a text, relative to the others: `replace`, `spans`,
            `crossover`, `mask`, `class`, `unseen`; see `pocketlm.data.augment`.
        replace: p_t: probability that `replace` replaces a word.
        samples: N: tries for each text.
        candidates: K: words that may stand for a word.
        mask: Probability that `mask` masks a word.
        word_class: Probability that `class` replaces a word.
        unseen: Probability that `unseen` replaces a word.
        span: Least and largest share of a text that `spans` keeps.
        most: New texts at most; None makes `samples` of each.
        masked_lm_steps: Steps that tune the head of a teacher without one; 0 replaces by static
            embeddings alone.
        learning_rate: Of that tuning.
        batch_size: Of that tuning.
    """

    operations: dict[Operation, float] = field(default_factory=_default_operations)
    replace: float = 0.4
    samples: int = 20
    candidates: int = 15
    mask: float = 0.1
    word_class: float = 0.1
    unseen: float = 0.2
    span: tuple[float, float] = (0.25, 0.9)
    most: int | None = 50_000
    masked_lm_steps: int = 300
    learning_rate: float = 1e-4
    batch_size: int = 32
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        unknown = sorted(set(self.operations) - set(OPERATIONS))
        if unknown:
            raise RecipeError(
                f"operations names {unknown[0]!r}, which is none; allowed: {', '.join(OPERATIONS)}"
            )
        if not self.operations or min(self.operations.values()) < 0 or not any(self.operations.values()):
            raise RecipeError(
                f"operations={self.operations}: weights must be 0 or more, one of them above 0; "
                "leave the stage out for no new texts"
            )
        for name in ("replace", "mask", "word_class", "unseen"):
            if not 0 < getattr(self, name) <= 1:
                raise RecipeError(
                    f"{name}={getattr(self, name)} is out of range; allowed: above 0, at most 1 "
                    "(an operation that is not wanted gets the weight 0 in operations)"
                )
        if not 0 < self.span[0] <= self.span[1] <= 1:
            raise RecipeError(
                f"span={list(self.span)} is out of range; allowed: two shares of a text, the lesser first"
            )
        for name in ("samples", "candidates", *(("most",) if self.most is not None else ())):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)} is out of range; allowed: 1 or more")
        if self.masked_lm_steps < 0:
            raise RecipeError(f"masked_lm_steps={self.masked_lm_steps} is out of range; allowed: 0 or more")
        self._settings()

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `augmented` and the figure `augmented` (texts by operation, the masked LM's curve).

        Raises:
            TeacherError: the teacher has no mask token where one is needed.
        """
        pool = load_pool(artifact)
        data, source = artifact.parts["data"], artifact.parts["teacher_source"]
        valid = load_split(data, "valid").texts
        held_out = [*valid, *load_split(data, "test").texts]
        about: dict[str, Any] = {"masked_lm": None, "curve": []}
        candidates: list[list[dict[int, list[str]]]] = []
        if self.operations.get("replace"):
            lm, about = self._masked_lm(artifact, pool.texts, valid, context)
            guessing = lm if about["masked_lm"] else None
            half = computes_half(self.precision)
            device = lm.model.device.type
            with torch.autocast(device, torch.bfloat16, enabled=half):
                candidates = word_candidates(lm, guessing, pool.texts, self.candidates, context.progress)
        tokenizer = load_tokenizer(source)
        augmenter = Augmenter(
            pool.texts,
            candidates,
            Rates(self.replace, self.mask, self.word_class, self.unseen, self.span),
            mask_token(tokenizer) if self.operations.get("mask") else "",
            [word for word in whole_words(tokenizer) if word] if self.operations.get("unseen") else (),
        )
        most = self.most or self.samples * len(pool)
        made: list[Texts] = []
        counts: Counter[str] = Counter()
        with context.progress.task("make new texts", min(most, self.samples * len(pool))) as advance:
            for operation, texts in augmented(augmenter, self.operations, self.samples, held_out, self.seed):
                if texts is None:
                    counts["nothing_new"] += 1
                    continue
                made.append(texts)
                counts[operation] += 1
                advance(1)
                if len(made) == most:
                    break
        with storage_errors(context.folder):
            save_texts(made, context.folder / MADE)
        figures = {"texts": len(made), "by_operation": dict(sorted(counts.items())), **about}
        return artifact.with_part("augmented", context.folder).with_figures(augmented=figures)

    def _settings(self) -> Settings:
        return Settings(
            epochs=1,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            evaluations=2,
            seed=self.seed,
            precision=self.precision,
        )

    def _masked_lm(
        self, artifact: Artifact, texts: Sequence[Texts], valid: Sequence[Texts], context: Context
    ) -> tuple[MaskedLM, dict[str, Any]]:
        """The masked language model, and how it came to be; tuned at most once in a stage's folder."""
        source, max_length = artifact.parts["teacher_source"], artifact.figures["max_length"]
        lm, trained = load_masked_lm(source, max_length)
        if trained:
            return lm, {"masked_lm": "the teacher's own", "curve": []}
        if not self.masked_lm_steps:
            return lm, {"masked_lm": None, "curve": []}
        done = context.folder / "masked_lm.json"
        if done.exists():
            about = json.loads(done.read_text(encoding="utf-8"))
            return load_masked_lm(context.folder / "masked_lm", max_length)[0], about
        lm, _ = load_masked_lm(source, max_length, frequencies_of(lm.encode(texts)))
        curve = tune_masked_lm(lm, texts, valid, self.masked_lm_steps, self._settings(), context)
        lm.save(context.folder / "masked_lm")
        about = {"masked_lm": f"tuned for {self.masked_lm_steps} steps", "curve": curve}
        write_json(done, about)
        return lm, about


def tune_masked_lm(
    lm: MaskedLM,
    texts: Sequence[Texts],
    valid: Sequence[Texts],
    steps: int,
    settings: Settings,
    context: Context,
) -> list[dict[str, Any]]:
    """Train a masked language model on texts, in place, its embeddings as they were.

    Args:
        lm: With any head.
        texts: To train on, as often as the steps need them, masked anew each time.
        valid: To measure on.
        steps: Of `settings.batch_size` texts.
        settings: With one epoch, which is all steps.
        context: Where checkpoints are.

    Returns:
        The curve; its score is minus the cross-entropy on valid, in nats.
    """
    lm.model.get_input_embeddings().weight.requires_grad_(False)
    encoded, held = lm.encode(texts), lm.encode(few(valid, EVALUATED))
    order = passes(len(texts), steps * settings.batch_size, settings.seed)
    vocabulary = lm.tokenizer.get_vocab_size()

    def masked(source: Any, row: int, number: int) -> tuple[list[int], list[int]]:
        # What is measured on is masked alike for every seed, or chance would tell trainings apart.
        chance = np.random.default_rng((settings.seed if source is encoded else 0, number))
        return mask_pieces(source.ids[row], source.origins[row], lm.mask_id, vocabulary, chance)

    def losses(source: Any, rows: Sequence[int], numbers: Sequence[int]) -> Tensor:
        pairs = [masked(source, row, number) for row, number in zip(rows, numbers, strict=True)]
        inputs = lm.inputs([read for read, _ in pairs], [source.type_ids[row] for row in rows])
        return masked_lm_loss(lm, inputs, padded_targets([targets for _, targets in pairs]))

    def loss(model: nn.Module, indices: Sequence[int]) -> Tensor:
        del model
        return losses(encoded, [order[index] for index in indices], indices)

    def score() -> float:
        rows = range(len(held))
        batches = [rows[start : start + EVALUATION_BATCH] for start in range(0, len(rows), EVALUATION_BATCH)]
        return -float(torch.cat([losses(held, batch, batch) for batch in batches]).mean())

    curve = train(
        lm.model,
        loss,
        [len(encoded.ids[row]) for row in order],
        settings,
        score,
        context.checkpoints,
        context.progress,
        "tune the masked LM",
    )
    return [asdict(point) for point in curve]


def padded_targets(targets: Sequence[Sequence[int]]) -> Tensor:
    """Targets of `mask_pieces` as one tensor, [batch, length], `IGNORED` behind the end."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in targets]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=IGNORED)
