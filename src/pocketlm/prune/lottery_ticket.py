"""Lottery tickets: parts of a pre-trained network that train as well as the whole.

Chen et al. 2020, The Lottery Ticket Hypothesis for Pre-trained BERT Networks
(https://arxiv.org/abs/2007.12223), section 2 and algorithm 1: train, remove the weights of least magnitude
over all layers (a tenth of all in every round), set the rest back to their pre-trained values, train again.
Frankle and Carbin 2019 (https://arxiv.org/abs/1803.03635) start from random weights and remove a fifth of
what is left; Frankle et al. 2020 (https://arxiv.org/abs/1912.05671) rewind to step k.

Where the paper and its published code differ, we follow the paper. The code gives every round a learning
rate that falls over the steps of all rounds together, so that within one it hardly falls; here it falls to
zero in every round. The code carries the trained classifier from round to round; here every training
starts from the same new head, as the paper's f(x; m ⊙ θ₀, γ₀).

Deviations: the best epoch on valid is kept; word embeddings stay as they were pre-trained; after rewinding
to step k the schedule starts anew. The random control keeps as many weights in each tensor as the ticket
does, which is harder to beat than as many over all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from pocketlm.artifact import Artifact, write_json
from pocketlm.data.examples import Examples, load_split
from pocketlm.distill.augment import tune_masked_lm
from pocketlm.distill.online import corpus_texts
from pocketlm.errors import DataError, RecipeError
from pocketlm.finetune import FineTune
from pocketlm.models.load import Classifier
from pocketlm.models.masked_lm import frequencies_of, load_masked_lm
from pocketlm.prune.magnitude import magnitudes
from pocketlm.prune.masks import (
    Masks,
    held,
    keep_best,
    load_masks,
    prunable,
    random_masks,
    save_masks,
    sparsity_of,
)
from pocketlm.stage import Context
from pocketlm.supervised import valid_score
from pocketlm.tokenization.encode import encode, load_tokenizer
from pocketlm.train import Point, Precision, Settings, save_tensors

Origin = Literal["original", "remaining"]
Kind = Literal["found", "random", "one-shot"]
Weights = Literal["rewound", "random"]

TRAINING = FineTune(mode="always")
HELD_OUT = 256
"""Texts of a corpus that masked language models are measured on."""


def sparsities(rounds: int, share: float, of: Origin = "original") -> list[float]:
    """The sparsity after every round.

    Args:
        rounds: How many.
        share: Removed in a round.
        of: All weights, as Chen et al. do, or those that are `remaining`, as Frankle and Carbin.

    Raises:
        RecipeError: nothing would be left.
    """
    if rounds < 1 or not 0 < share < 1 or (of == "original" and rounds * share >= 1):
        raise RecipeError(
            f"rounds={rounds} and share={share} of the {of} weights leave nothing, or remove nothing; "
            "allowed: rounds from 1, share above 0, and together below 1 of the original weights"
        )
    if of == "original":
        return [round((number + 1) * share, 12) for number in range(rounds)]
    return [1 - (1 - share) ** (number + 1) for number in range(rounds)]


Fresh = Callable[[], tuple[nn.Module, Callable[[int], None]]]
"""The network at the weights to which it is rewound, and what trains it in place, given the round from 0."""


def iterative_magnitude_pruning(fresh: Fresh, sparsity: Sequence[float], folder: Path) -> None:
    """Find a ticket at every sparsity: algorithm 1, on any network.

    Args:
        fresh: Always gives the same weights. What a mask removed stays at zero while it is trained.
        sparsity: To reach in each round, ascending.
        folder: Where the masks go, see `masks_path`. A round that is there is not run again.
    """
    masks: Masks | None = None
    for number, wanted in enumerate(sparsity):
        path = masks_path(folder, number + 1)
        if not path.exists():
            model, fit = fresh()
            with held(model, masks or {}):
                fit(number)
            save_masks(keep_best(magnitudes(model), wanted, within=masks), path)
        masks = load_masks(path)


def masks_path(folder: Path, number: int) -> Path:
    """The masks after a round, counted from 1."""
    return folder / f"round-{number:02}.safetensors"


def is_winning(scores: Sequence[float], dense: Sequence[float]) -> bool:
    """True where the mean is within one standard deviation of the dense network's mean, or above.

    Args:
        scores: Of the ticket, one a seed.
        dense: Of the whole network, one a seed, two or more; their sample deviation counts.
    """
    whole = torch.tensor(dense, dtype=torch.float64)
    return float(torch.tensor(scores, dtype=torch.float64).mean()) >= float(whole.mean() - whole.std())


@dataclass(frozen=True)
class FindTickets:
    """Find a task's ticket at every sparsity, and the masks that it is to be compared with.

    Args:
        rounds: How many.
        share: Of the weights, removed in every round.
        of: The `original` weights, or those `remaining`.
        rewind_step: Training step to whose weights a ticket is rewound; 0 are the pre-trained ones.
        training: Of every round.
        seed: Of the new head and of the batches.
    """

    rounds: int = 9
    share: float = 0.1
    of: Origin = "original"
    rewind_step: int = 0
    training: FineTune = TRAINING
    seed: int = 0

    def __post_init__(self) -> None:
        sparsities(self.rounds, self.share, self.of)  # out of range is told at once
        if self.rewind_step < 0:
            raise RecipeError(f"rewind_step={self.rewind_step} is out of range; allowed: 0 or more")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `tickets`, a folder for every `Kind` of mask, and the figure `sparsities`.

        Also the figure `searched`: its own trainings, each the trial of the ticket of the round before.
        With a step to rewind to, also the part `rewound`, the weights of that step.

        Raises:
            RecipeError: training ends before `rewind_step`.
        """
        splits = splits_of(artifact)
        wanted, folder = sparsities(self.rounds, self.share, self.of), context.folder / "tickets"
        training = replace(self.training, seed=self.seed)
        source, start = artifact.parts["teacher_source"], context.folder / "rewound.safetensors"

        def fresh() -> tuple[nn.Module, Callable[[int], None]]:
            teacher = training.fresh(source, artifact.task)
            if masks_path(folder / "found", 1).exists():
                teacher = rewound(teacher, start)

            def fit(number: int) -> None:
                def keep(step: int, steps: int) -> None:
                    del steps
                    if number == 0 and step == self.rewind_step > 0:
                        save_tensors(teacher.model.state_dict(), start)

                own = replace(context, checkpoints=context.checkpoints / f"round-{number + 1:02}")
                what = f"round {number + 1} of {self.rounds}"
                curve = training.fit(teacher, splits["train"], splits["valid"], own, what, keep)
                masks = load_masks(masks_path(folder / "found", number)) if number else {}
                trial = TryTicket(round=number, seed=self.seed).trial(teacher, masks, splits["test"], curve)
                write_json(_trial_path(context, number), trial)
                if number == 0:
                    save_all(magnitudes(teacher.model), wanted, folder / "one-shot")

            return teacher.model, fit

        iterative_magnitude_pruning(fresh, wanted, folder / "found")
        if self.rewind_step:
            if not start.exists():
                raise RecipeError(
                    f"rewind_step={self.rewind_step} is not below the steps of a round; take fewer"
                )
            artifact = artifact.with_part("rewound", start)
        # The first round is trained from step 0, and the whole network is tried from step k.
        tried = range(1 if self.rewind_step else 0, self.rounds)
        searched = [json.loads(_trial_path(context, number).read_text()) for number in tried]
        return artifact.with_part("tickets", folder).with_figures(sparsities=wanted, searched=searched)


@dataclass(frozen=True)
class FindMaskedLmTickets:
    """Find the tickets of masked language modelling on plain text, which belong to no task (section 4).

    The pooler is no part of a masked language model, so these masks leave it whole.

    Args:
        rounds: How many.
        share: Of the weights, removed in every round.
        of: The `original` weights, or those `remaining`.
        texts: So many texts of the corpus, from the first, in every round.
        epochs: A round's passes over them.
        learning_rate: Of every round.
        batch_size: Texts in a step.
        max_length: Pieces of a text.
        precision: See `pocketlm.train.Settings`.
        seed: Of the batches and of what is masked.
    """

    rounds: int = 7
    share: float = 0.1
    of: Origin = "original"
    texts: int = 4000
    epochs: int = 1
    learning_rate: float = 5e-5
    batch_size: int = 32
    max_length: int = 128
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        sparsities(self.rounds, self.share, self.of)  # out of range is told at once
        Settings.of(self)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the part `tickets` and the figures `sparsities` and `masked_lm`, nats a piece in every round.

        Raises:
            DataError: the corpus is too small.
        """
        texts = [(text,) for text in corpus_texts(artifact.parts["corpus_source"])]
        valid, texts = texts[:HELD_OUT], texts[HELD_OUT : HELD_OUT + self.texts]
        if not texts:
            raise DataError(f"the corpus has no more than {HELD_OUT} texts; give more plain text")
        wanted, folder = sparsities(self.rounds, self.share, self.of), context.folder / "tickets"
        settings = replace(Settings.of(self), epochs=1)
        steps = self.epochs * -(-len(texts) // self.batch_size)
        source = artifact.parts["teacher_source"]
        frequencies = frequencies_of(encode(load_tokenizer(source), texts, self.max_length))

        def fresh() -> tuple[nn.Module, Callable[[int], None]]:
            lm, _ = load_masked_lm(source, self.max_length, frequencies)

            def fit(number: int) -> None:
                own = replace(context, checkpoints=context.checkpoints / f"round-{number + 1:02}")
                curve = tune_masked_lm(lm, texts, valid, steps, settings, own)
                write_json(context.folder / f"round-{number + 1:02}.json", -curve[-1]["valid_score"])

            return lm.model, fit

        iterative_magnitude_pruning(fresh, wanted, folder / "found")
        nats = [json.loads(path.read_text()) for path in sorted(context.folder.glob("round-*.json"))]
        return artifact.with_part("tickets", folder).with_figures(sparsities=wanted, masked_lm=nats)


@dataclass(frozen=True)
class TryTicket:
    """Train a ticket from the weights to which it is rewound, and measure it; round 0 is the whole network.

    Args:
        kind: `found` by iterative pruning; a `random` mask; or `one-shot`, by the magnitudes of the whole
            network after training.
        round: Of `FindTickets`, from 1; 0 removes nothing.
        weights: To start from: `rewound`, or `random` ones of the same mean and deviation in every tensor.
        training: As of the rounds.
        seed: Of the new head, of the batches and of what is random.
    """

    kind: Kind = "found"
    round: int = 0
    weights: Weights = "rewound"
    training: FineTune = TRAINING
    seed: int = 0

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the figure `trial`."""
        splits = splits_of(artifact)
        folder = artifact.parts["tickets"]
        training = replace(self.training, seed=self.seed)
        teacher = training.fresh(artifact.parts["teacher_source"], artifact.task)
        if "rewound" in artifact.parts:
            teacher = rewound(teacher, artifact.parts["rewound"])
        masks: Masks = {}
        if self.round:
            given = "found" if self.kind == "random" else self.kind
            masks = load_masks(masks_path(folder / given, self.round))
            masks = random_masks(masks, self.seed) if self.kind == "random" else masks
        if self.weights == "random":
            draw_again(teacher.model, self.seed)
        with held(teacher.model, masks):
            what = f"{self.kind} ticket of round {self.round}, seed {self.seed}"
            curve = training.fit(teacher, splits["train"], splits["valid"], context, what)
        return artifact.with_figures(trial=self.trial(teacher, masks, splits["test"], curve))

    @property
    def name(self) -> dict[str, Any]:
        """What tells a trial from the others of its study."""
        return {"kind": self.kind, "round": self.round, "weights": self.weights, "seed": self.seed}

    def trial(
        self, teacher: Classifier, masks: Masks, test: Examples, curve: Sequence[Point]
    ) -> dict[str, Any]:
        """The name, the sparsity, and the scores on valid and test of a ticket that was trained."""
        return {
            **self.name,
            "sparsity": sparsity_of(masks),
            "valid": max(point.valid_score for point in curve),  # training ends with these weights
            "test": valid_score(teacher, teacher.encode(test.texts), test),
        }


def splits_of(artifact: Artifact) -> dict[str, Examples]:
    """The rows of a task."""
    return {name: load_split(artifact.parts["data"], name) for name in ("train", "valid", "test")}


def _trial_path(context: Context, number: int) -> Path:
    """Where a search keeps the scores of the training that a round, from 0, began with."""
    return context.folder / f"trial-{number:02}.json"


def save_all(scores: Mapping[str, Tensor], sparsity: Sequence[float], folder: Path) -> None:
    """The masks that keep the best scores, one for every sparsity."""
    for number, wanted in enumerate(sparsity, start=1):
        save_masks(keep_best(scores, wanted), masks_path(folder, number))


def rewound(teacher: Classifier, start: Path) -> Classifier:
    """The same teacher at the weights of the step that tickets are rewound to, once they are kept."""
    if start.exists():
        teacher.model.load_state_dict(load_file(start))
    return teacher


@torch.no_grad()
def draw_again(model: nn.Module, seed: int) -> None:
    """Replace every weight that may go by a random one of the tensor's mean and deviation, in place."""
    chance = torch.Generator().manual_seed(seed)
    for weight in prunable(model).values():
        fresh = torch.randn(weight.shape, generator=chance)
        weight.copy_(weight.mean() + weight.std() * fresh)
