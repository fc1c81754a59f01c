"""Build a student of any shape, from the teacher's own weights or from another pre-trained model's.

A student that starts from chosen layers of its teacher has most of what general distillation would
have to teach it (Sanh et al. 2019, DistilBERT, https://arxiv.org/abs/1910.01108, section 3), and on
two cores there is no time for general distillation.

Deviations: all else is chosen too. Layers are spread evenly; FFN neurons, heads and the units of the head's
pool by saliency (`pocketlm.models.saliency`); hidden units by what the others follow from best, or as
the principal directions of the hidden states; a head's size by the best approximation of lower rank of its
scores and its output (`pocketlm.models.cut`). Then every map is fitted, in order, to the teacher's own next
state (`pocketlm.models.refit`). Pieces of a new vocabulary start as the mean of the pieces they are made of
(`pocketlm.models.pieces`), a factorised table as its best approximation (`pocketlm.models.factorize`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.data.sample import few
from pocketlm.errors import RecipeError
from pocketlm.models.cut import (
    chosen_heads,
    chosen_layers,
    keep_heads,
    keep_layers,
    keep_neurons,
    keep_pool,
    most_salient,
    project_hidden,
    reader_of,
    rebuilt,
    resize_heads,
)
from pocketlm.models.factorize import factorize
from pocketlm.models.families import family_of, layers_of
from pocketlm.models.load import Classifier, parameters_of, set_dropout, with_new_head
from pocketlm.models.pieces import embed_pieces, keep_pieces, keep_positions, set_pieces
from pocketlm.models.refit import fit_head, refit
from pocketlm.models.saliency import Survey, flat_survey, principal_directions, salient_units, survey
from pocketlm.models.uneven import check_even
from pocketlm.stage import Context
from pocketlm.tokenization.encode import Encoded
from pocketlm.tokenization.learn import learn
from pocketlm.tokenization.trim import Scripts, trim

CALIBRATION_EXAMPLES = 512
CALIBRATION_PIECES = 8192
HEAD_EXAMPLES = 1024


@dataclass(frozen=True)
class Shape:
    """The layers and the width of a student, all given."""

    layers: tuple[int, ...]
    hidden_size: int
    heads: int


@dataclass(frozen=True)
class BuildStudent:
    """Cut a student out of the teacher, or out of the recipe's `start`.

    Args:
        layers: Layers to keep, ascending from 0; or how many, spread evenly with the last kept; None
            keeps all.
        hidden_size: Hidden units to keep; None keeps all.
        intermediate_size: FFN neurons to keep in every layer; None keeps all.
        heads: Attention heads to keep in every layer, a divisor of the hidden size; None keeps all.
        vocabulary: Pieces to keep or to learn; None keeps all.
        scripts: `used` drops the letters of scripts that the training texts never use, `all` keeps them.
        embedding_size: Width of the table of pieces, behind which a linear map gives hidden units; None
            leaves the table as it is.
        init: `teacher` takes the weights; `random` only the shape, with weights as the family starts.
        width: Hidden units as a `projection` on the principal directions of the teacher's hidden states, or
            by `saliency`: those from which the others follow best.
        refit: Fit the maps to the teacher's states after the cut. None: where hidden units, heads
            or the table are cut.
        vocabulary_from: The `teacher`'s pieces that the training texts use; these and, in the room they
            leave, the most usual others of its `language`; or pieces learned from the `text`.
        seed: Of random weights.
    """

    layers: int | tuple[int, ...] | None = 3
    hidden_size: int | None = None
    intermediate_size: int | None = None
    heads: int | None = None
    vocabulary: int | None = 8000
    scripts: Scripts = "used"
    embedding_size: int | None = None
    init: Literal["teacher", "random"] = "teacher"
    width: Literal["saliency", "projection"] = "projection"
    refit: bool | None = None
    vocabulary_from: Literal["teacher", "language", "text"] = "teacher"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vocabulary_from != "teacher" and self.vocabulary is None:
            raise RecipeError(
                f"vocabulary_from={self.vocabulary_from} needs a size; set vocabulary, to 5000 for example"
            )

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the parts `student` and `untrained_student` and the figures of its shape and parameters.

        Raises:
            RecipeError: the teacher has fewer layers, neurons, heads or hidden units than asked for.
            TeacherError: the teacher is not of the BERT family, or its layers are uneven.
        """
        task, max_length = artifact.task, artifact.figures["max_length"]
        teacher = Classifier.load(artifact.master, task, max_length)
        texts = load_split(artifact.parts["data"], "train").texts
        torch.manual_seed(self.seed)
        source = teacher
        if "start_source" in artifact.parts and "assistant" not in artifact.parts:
            source = with_new_head(artifact.parts["start_source"], task, max_length)
        check_even(source.model)
        shape = self.shape_of(source.model)
        student = self.cut(source, shape, texts)
        # A head on words is left as it is: the first training steps are enough for it.
        if source is not teacher and self.init == "teacher" and not task.word_outputs:
            sample = few(texts, HEAD_EXAMPLES)
            fit_head(student, sample, teacher.logits(teacher.encode(sample)))
        folder = context.folder / "student"
        student.save(folder)
        config = cast(Any, student.model.config)
        figures = {
            "layers": len(shape.layers),
            "teacher_layers": list(shape.layers),
            "hidden_size": config.hidden_size,
            "intermediate_size": layers_of(student.model)[0].rising.out_features,
            "heads": config.num_attention_heads,
            "vocabulary": config.vocab_size,
            "embedding_size": student.model.get_input_embeddings().embedding_dim,
        }
        if source is not teacher:
            depth = cast(Any, teacher.model.config).num_hidden_layers
            figures["teacher_layers"] = even_layers(len(shape.layers), depth)
        return (
            artifact.with_part("student", folder)
            .with_part("untrained_student", folder)
            .with_figures(
                shape=figures,
                parameters=parameters_of(student.model),
                # An assistant has told those of the teacher.
                teacher_parameters=artifact.figures.get("teacher_parameters", parameters_of(teacher.model)),
            )
        )

    def shape_of(self, model: PreTrainedModel) -> Shape:
        """The sizes asked for, checked against a model's.

        Raises:
            RecipeError: out of range, or heads that do not divide the hidden size.
        """
        family, config = family_of(model), cast(Any, model.config)
        layers = chosen_layers(self.layers, config.num_hidden_layers)
        hidden = config.hidden_size if self.hidden_size is None else self.hidden_size
        if not 1 <= hidden <= config.hidden_size:
            raise RecipeError(
                f"hidden_size={hidden} is out of range; the teacher has {config.hidden_size} hidden units, "
                f"so allowed: 1 to {config.hidden_size}"
            )
        heads = config.num_attention_heads if self.heads is None else self.heads
        if heads < 1 or hidden % heads:
            divisors = [count for count in range(1, config.num_attention_heads + 1) if hidden % count == 0]
            raise RecipeError(
                f"heads={heads} does not divide hidden_size={hidden}; "
                f"set heads to one of {', '.join(map(str, divisors))}"
            )
        if self.refit and family.shared:
            raise RecipeError(
                f"refit=True, but the layers of {type(model).__name__} share their weights, which no fit of "
                "single layers leaves intact; set refit: null"
            )
        return Shape(layers, hidden, heads)

    def cut(self, source: Classifier, shape: Shape, texts: Sequence[tuple[str, ...]]) -> Classifier:
        """The student of that shape, in evaluation mode and without dropout."""
        config = cast(Any, source.model.config)
        takes = self.init == "teacher"
        narrow = shape.hidden_size < config.hidden_size or shape.heads < config.num_attention_heads
        encoded = calibration(source, texts)
        surveyed = takes and (narrow or self.intermediate_size is not None)
        seen = survey(source, encoded) if surveyed else flat_survey(source)
        wide = copy.deepcopy(source.model)
        # A student has no capacity to spare, and its targets are soft.
        set_dropout(wide.config, 0.0)
        self.narrow(wide, shape, seen)
        moment = torch.stack(
            [seen.hidden[index] for index in (shape.layers if len(seen.hidden) > 1 else (0,))]
        ).sum(dim=0)
        basis, model = self.basis(moment, shape.hidden_size), copy.deepcopy(wide)
        if shape.hidden_size < config.hidden_size:
            project_hidden(model, basis, reader_of(moment, basis))
        student = Classifier(rebuilt(model), source.tokenizer, source.task, source.max_length)
        if self.embedding_size is not None:
            student.model = factorize(student.model, self.embedding_size, use_of(source, texts))
        changed = narrow or self.embedding_size is not None
        wanted = changed and not family_of(source.model).shared if self.refit is None else self.refit
        if takes and wanted:
            refit(student, source, wide, basis, shape.layers, encoded)
        model = student.model
        tokenizer = source.tokenizer
        if self.vocabulary is not None and self.vocabulary_from == "text":
            tokenizer = learn(source.tokenizer, texts, self.vocabulary)
            pieces, known = source.tokenizer.get_vocab(), tokenizer.get_vocab()
            shared = {index: known[piece] for piece, index in pieces.items() if piece in known}
            set_pieces(model, embed_pieces(model, source.tokenizer, tokenizer), shared)
        elif self.vocabulary is not None:
            unseen = self.vocabulary_from == "language"
            trimmed = trim(source.tokenizer, texts, self.vocabulary, self.scripts, unseen)
            tokenizer = trimmed.tokenizer
            keep_pieces(model, trimmed.teacher_ids)
        keep_positions(model, source.max_length)
        made = rebuilt(model, fresh=not takes)
        return Classifier(made, tokenizer, source.task, source.max_length)

    def narrow(self, model: PreTrainedModel, shape: Shape, seen: Survey) -> None:
        """Cut layers, neurons, heads and the pool's units, in place; not yet the hidden units."""
        own = (0,) if family_of(model).shared else shape.layers
        keep_layers(model, shape.layers)
        if self.intermediate_size is not None:
            keep_neurons(model, [seen.neurons[index] for index in own], self.intermediate_size)
        kept = chosen_heads(model, [seen.heads[index] for index in own], shape.heads)
        if shape.heads < len(seen.heads[0]):
            keep_heads(model, kept)
        moments = [(seen.queries[index], seen.keys[index], seen.values[index]) for index in own]
        resize_heads(model, moments, kept, shape.hidden_size // shape.heads)
        if seen.pool is not None and shape.hidden_size < len(seen.pool):
            keep_pool(model, most_salient(seen.pool, shape.hidden_size))

    def basis(self, moment: Tensor, size: int) -> Tensor:
        """The student's hidden units as directions of the teacher's: [hidden, size]."""
        if size == len(moment):
            return torch.eye(size)
        if self.width == "projection":
            return principal_directions(moment, size)
        return torch.eye(len(moment))[:, salient_units(moment, size)]


def use_of(source: Classifier, texts: Sequence[tuple[str, ...]]) -> Tensor:
    """How often the texts use each piece, and once more: [pieces]."""
    ids = [index for row in source.encode(texts).ids for index in row]
    return 1.0 + torch.bincount(torch.tensor(ids), minlength=cast(Any, source.model.config).vocab_size)


def calibration(source: Classifier, texts: Sequence[tuple[str, ...]]) -> Encoded:
    """Training texts from everywhere among them, about as many as calibration can afford."""
    sample = few(texts, CALIBRATION_EXAMPLES)
    share = CALIBRATION_PIECES / max(sum(source.encode(sample).lengths), 1)
    return source.encode(few(sample, max(1, int(share * len(sample)))))


def even_layers(count: int, depth: int) -> list[int]:
    """The teacher's layer that each of `count` layers of another model is compared with.

    The state behind layer i, that is i + 1, belongs to the teacher's state round((i + 1) · depth / count).
    """
    return [max(round((index + 1) * depth / count) - 1, 0) for index in range(count)]
