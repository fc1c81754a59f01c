"""A student of a tenth of the width with a small vocabulary of its own, taught by dual training.

Zhao et al. 2019, "Extreme Language Model Compression with Optimal Subwords and Shared Projections"
(https://arxiv.org/abs/1909.11687v1), section 3: teacher and student learn masked language modelling at the
same time. The teacher reads words of both vocabularies in one input (dual training, p_DT), so that the
student's pieces get embeddings in the teacher's space; and projections that all layers share hold the
variables of both models together (shared variable projections):

    down: Σ ‖U θ_t V − θ_s‖²        up: Σ ‖θ_t − U' θ_s V'‖²        loss: L_t + L_s + ε · (L_down + L_up)

Deviations: the models train on the user's text, for a bounded number of steps, not on the corpus of BERT,
and without next-sentence prediction; those of `pocketlm.distill.projections`. The student's embeddings
start as the principal directions of the teacher's, its pieces being the mean of the teacher's pieces of
the same letters. The second version of the paper (EACL 2021: the teacher's input mixed first, then the
student alone on its own pieces) is not implemented.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, PreTrainedModel

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_pool, load_split
from pocketlm.data.sample import few, passes
from pocketlm.distill.augment import padded_targets
from pocketlm.distill.projections import Direction, Projections
from pocketlm.errors import RecipeError, TeacherError
from pocketlm.models.families import encoder_layers
from pocketlm.models.load import ATTENTION, EVALUATION_BATCH, Classifier, parameters_of, quiet_transformers
from pocketlm.models.masked_lm import (
    IGNORED,
    MaskedLM,
    frequencies_of,
    load_masked_lm,
    mask_pieces,
    masked_lm_loss,
    start_head,
)
from pocketlm.models.pieces import keep_positions
from pocketlm.stage import Context
from pocketlm.tokenization.encode import pad_id
from pocketlm.tokenization.learn import learn
from pocketlm.tokenization.mixed import Word, mix, segment
from pocketlm.train import Precision, Settings, train

EVALUATED = 256
Texts = tuple[str, ...]


@dataclass(frozen=True)
class Subwords:
    """Build a narrow student over a learned vocabulary and train it beside the teacher.

    Args:
        vocabulary: Pieces of the student's vocabulary.
        hidden_size: Width of the student: 48, 96 or 192 in the paper. Its layers and heads are as many
            as the teacher's, its FFN four times as wide.
        p_dt: Probability that the teacher reads a word in the student's pieces.
        projections: Which projection losses hold the variables together.
        epsilon: Their weight.
        steps: Of `batch_size` texts.

    The rest is `pocketlm.train.Settings`.
    """

    vocabulary: int = 4928
    hidden_size: int = 192
    p_dt: float = 0.5
    projections: Direction = "both"
    epsilon: float = 1.0
    steps: int = 1000
    learning_rate: float = 3e-4
    batch_size: int = 32
    micro_batch: int | None = None
    warmup: float = 0.1
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.p_dt <= 1:
            raise RecipeError(f"p_dt={self.p_dt} is out of range; allowed: 0 to 1")
        if self.epsilon < 0:
            raise RecipeError(f"epsilon={self.epsilon} is out of range; allowed: 0 or more")
        for name in ("vocabulary", "hidden_size", "steps"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}={getattr(self, name)} is out of range; allowed: 1 or more")
        self._settings()

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the parts `student` and `untrained_student`, the student's shape and the figure `subwords`.

        Raises:
            RecipeError: the width does not divide by the teacher's heads, or the task is on words.
            TeacherError: the teacher is not of the BERT family, its tokenizer is not WordPiece, or its
                embeddings are of another width than its hidden states.
        """
        task, max_length = artifact.task, artifact.figures["max_length"]
        if task.word_outputs:
            raise RecipeError(
                f"subwords makes students for whole texts, and the task ({task.kind}) is on words; "
                "use the stages student, teacher_outputs and distill instead"
            )
        texts = load_pool(artifact).texts
        torch.manual_seed(self.seed)
        teacher, _ = load_masked_lm(artifact.parts["teacher_source"], max_length)
        teacher_parameters = parameters_of(Classifier.load(artifact.parts["teacher"], task, max_length).model)
        kind = json.loads(teacher.tokenizer.to_str())["model"]["type"]
        if kind != "WordPiece":
            raise TeacherError(
                f"the teacher's tokenizer is of type {kind}; words are mixed in the manner "
                "of WordPiece only; use the student and distill stages instead"
            )
        config = cast(Any, teacher.model.config)
        if getattr(config, "embedding_size", config.hidden_size) != config.hidden_size:
            raise TeacherError(
                f"the teacher's embeddings are {config.embedding_size} wide and its hidden states "
                f"{config.hidden_size}, and the projections want one width; use the student and distill "
                "stages instead"
            )
        tokenizer = learn(teacher.tokenizer, texts, self.vocabulary)
        student = build_student(teacher, tokenizer, self.hidden_size, texts)
        widen_vocabulary(teacher, tokenizer)
        projections = Projections(student.model, teacher.model, self.projections)
        start_embeddings(student, teacher, projections, tokenizer)
        untrained = as_classifier(student, task, max_length)
        untrained.save(context.folder / "untrained")
        curve = self._train(teacher, student, projections, texts, artifact, context)
        classifier = as_classifier(student, task, max_length, untrained)
        folder = context.folder / "student"
        classifier.save(folder)
        config = classifier.model.config
        shape = {
            "layers": config.num_hidden_layers,
            "teacher_layers": list(range(config.num_hidden_layers)),
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "heads": config.num_attention_heads,
            "vocabulary": config.vocab_size,
        }
        return (
            artifact.with_part("student", folder)
            .with_part("untrained_student", context.folder / "untrained")
            .with_figures(
                shape=shape,
                parameters=parameters_of(classifier.model),
                teacher_parameters=teacher_parameters,
                subwords={"curve": curve},
            )
        )

    def _settings(self) -> Settings:
        return Settings(
            epochs=1,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            micro_batch=self.micro_batch,
            warmup=self.warmup,
            evaluations=4,
            seed=self.seed,
            precision=self.precision,
        )

    def _train(
        self,
        teacher: MaskedLM,
        student: MaskedLM,
        projections: Projections,
        texts: Sequence[Texts],
        artifact: Artifact,
        context: Context,
    ) -> list[dict[str, Any]]:
        """Dual training, in place; the score of the curve is minus the student's MLM loss on valid."""
        held = student.encode(few(load_split(artifact.parts["data"], "valid").texts, EVALUATED))
        order = passes(len(texts), self.steps * self.batch_size, self.seed)
        words = segment(teacher.tokenizer, student.tokenizer, texts, teacher.max_length)
        encoded = student.encode(texts)

        def loss(model: nn.Module, indices: Sequence[int]) -> Tensor:
            del model
            rows = [order[index] for index in indices]
            of_teacher = mixed_loss(teacher, [words[row] for row in rows], self.p_dt, indices, self.seed)
            of_student = student_loss(student, encoded, rows, indices, self.seed)
            total = of_teacher + of_student
            return total + self.epsilon * projections() if self.epsilon else total

        def score() -> float:
            rows = range(len(held))
            starts = range(0, len(rows), EVALUATION_BATCH)
            batches = [list(rows[start : start + EVALUATION_BATCH]) for start in starts]
            losses = [student_loss(student, held, batch, batch, self.seed) for batch in batches]
            return -float(torch.cat(losses).mean())

        curve = train(
            student.model,
            loss,
            [len(encoded.ids[row]) for row in order],
            self._settings(),
            score,
            context.checkpoints,
            context.progress,
            "dual training",
            nn.ModuleList([teacher.model, projections]),
        )
        return [asdict(point) for point in curve]


def build_student(
    teacher: MaskedLM, tokenizer: Tokenizer, hidden_size: int, texts: Sequence[Texts]
) -> MaskedLM:
    """A random masked language model of the teacher's architecture and depth; seed torch before the call.

    Raises:
        RecipeError: the width does not divide by the teacher's heads.
        TeacherError: the teacher is not of the BERT family.
    """
    if not hasattr(encoder_layers(teacher.model)[0], "intermediate"):
        raise TeacherError(
            f"{type(teacher.model).__name__} is not built of BERT-like layers, so no narrow student follows "
            "it yet; use a BERT, ELECTRA, MPNet or MegatronBERT teacher"
        )
    config: Any = type(teacher.model.config).from_dict(teacher.model.config.to_dict())
    heads = config.num_attention_heads
    if hidden_size % heads:
        near = -(-hidden_size // heads) * heads
        raise RecipeError(
            f"hidden_size={hidden_size} does not divide by the teacher's {heads} heads; "
            f"try {max(heads, near - heads)} or {near}"
        )
    config.hidden_size, config.intermediate_size = hidden_size, 4 * hidden_size
    config.vocab_size = tokenizer.get_vocab_size()
    if hasattr(config, "embedding_size"):
        config.embedding_size = hidden_size
    if getattr(config, "pad_token_id", None) is not None:
        config.pad_token_id = pad_id(tokenizer)
    model = cast(Any, AutoModelForMaskedLM).from_config(config, attn_implementation=ATTENTION)
    student = MaskedLM(cast(PreTrainedModel, model), tokenizer, teacher.max_length)
    start_head(student.model, frequencies_of(student.encode(texts)))
    return student


@torch.no_grad()
def widen_vocabulary(teacher: MaskedLM, tokenizer: Tokenizer) -> None:
    """Append the student's pieces to the teacher's embeddings, in place: ids from the teacher's size on.

    A new piece starts as the mean of the teacher's pieces of the same letters.
    """
    before = teacher.tokenizer.get_vocab_size()
    rows = [_same_letters(teacher.tokenizer, tokenizer, piece) for piece in range(tokenizer.get_vocab_size())]
    with quiet_transformers():
        cast(Any, teacher.model).resize_token_embeddings(before + len(rows), mean_resizing=False)
    table = cast(Any, teacher.model).get_input_embeddings().weight
    for piece, pieces in enumerate(rows):
        table[before + piece] = table[pieces].mean(dim=0)
    output = cast(Any, teacher.model).get_output_embeddings()
    output.bias[before:] = output.bias[:before].mean()


def _same_letters(teacher: Tokenizer, student: Tokenizer, piece: int) -> list[int]:
    name = cast(str, student.id_to_token(piece))
    own = teacher.token_to_id(name)
    if own is not None:
        return [own]
    inside = name.startswith("##") and len(name) > 2
    found: list[int] = teacher.encode("x" + name[2:] if inside else name, add_special_tokens=False).ids
    return (found[1:] if inside and len(found) > 1 else found) or [pad_id(teacher)]


@torch.no_grad()
def start_embeddings(
    student: MaskedLM, teacher: MaskedLM, projections: Projections, tokenizer: Tokenizer
) -> None:
    """Start the student's embeddings, and the projections of its width, as the teacher's main directions."""
    size = tokenizer.get_vocab_size()
    table = cast(Tensor, cast(Any, teacher.model).get_input_embeddings().weight)[-size:].float()
    mine = cast(Tensor, cast(Any, student.model).get_input_embeddings().weight)
    directions = cast(Tensor, torch.linalg.svd(table, full_matrices=False).Vh)[: mine.shape[1]]
    if len(directions) == mine.shape[1]:  # fewer, where the pieces are fewer than the student is wide
        mine.copy_(table @ directions.T)
        for side in ("U", "V"):
            projections.maps[f"down_{side}_hidden"].copy_(directions)
            projections.maps[f"up_{side}_hidden"].copy_(directions.T)


def mixed_loss(
    teacher: MaskedLM, words: Sequence[Sequence[Word]], p_dt: float, numbers: Sequence[int], seed: int
) -> Tensor:
    """L_t: masked language modelling on mixed input, a softmax for each vocabulary (section 3.1).

    Args:
        teacher: With the student's pieces behind its own vocabulary.
        words: Of each example.
        p_dt: Probability that a word is in the student's pieces.
        numbers: Of each example, all that its masks depend on beside the seed.
        seed: Of the run.

    Returns:
        Mean over an example's masked places, [batch].
    """
    first = teacher.tokenizer.get_vocab_size()
    vocabulary = cast(Any, teacher.model).get_input_embeddings().num_embeddings
    read: list[list[int]] = []
    segments: list[list[int]] = []
    wanted: list[list[int]] = []
    for example, number in zip(words, numbers, strict=True):
        chance = np.random.default_rng((seed, number, 1))
        ids, types, origins = mix(example, p_dt, first, chance, teacher.max_length)
        masked, targets = mask_pieces(ids, origins, teacher.mask_id, vocabulary, chance)
        read.append(masked)
        segments.append(types)
        wanted.append(targets)
    targets = padded_targets(wanted)
    asked = targets != IGNORED
    logits = teacher.logits(teacher.hidden(teacher.inputs(read, segments))[asked]).float()
    losses = two_softmaxes(logits, targets[asked], first)
    sums = torch.zeros(len(read)).index_add(0, asked.nonzero()[:, 0], losses)
    return sums / asked.sum(dim=1).clamp_min(1)


def two_softmaxes(logits: Tensor, targets: Tensor, first: int) -> Tensor:
    """Cross-entropy within the vocabulary that each target is of.

    Args:
        logits: [places, both vocabularies].
        targets: Piece ids, [places].
        first: Pieces from here on are the student's.

    Returns:
        [places].
    """
    students = targets >= first
    theirs = F.cross_entropy(logits[~students, :first], targets[~students], reduction="none")
    ours = F.cross_entropy(logits[students, first:], targets[students] - first, reduction="none")
    losses = torch.zeros(len(targets))
    return losses.index_put((~students,), theirs).index_put((students,), ours)


def student_loss(
    student: MaskedLM, encoded: Any, rows: Sequence[int], numbers: Sequence[int], seed: int
) -> Tensor:
    """L_s: masked language modelling of the student on its own pieces, [batch]."""
    vocabulary = student.tokenizer.get_vocab_size()
    pairs = [
        mask_pieces(
            encoded.ids[row],
            encoded.origins[row],
            student.mask_id,
            vocabulary,
            np.random.default_rng((seed, number, 2)),
        )
        for row, number in zip(rows, numbers, strict=True)
    ]
    inputs = student.inputs([read for read, _ in pairs], [encoded.type_ids[row] for row in rows])
    return masked_lm_loss(student, inputs, padded_targets([targets for _, targets in pairs]))


def as_classifier(
    student: MaskedLM, task: Any, max_length: int, headed: Classifier | None = None
) -> Classifier:
    """The student's encoder under a classification head: a random one, or that of `headed`."""
    config: Any = type(student.model.config).from_dict(student.model.config.to_dict())
    config.num_labels = task.outputs
    model = cast(Any, AutoModelForSequenceClassification).from_config(config, attn_implementation=ATTENTION)
    own: Mapping[str, Tensor] = cast(Any, student.model).base_model.state_dict()
    if headed is not None:
        kept = {name: tensor for name, tensor in headed.model.state_dict().items() if "position" not in name}
        model.load_state_dict(kept, strict=False)
    model.base_model.load_state_dict(own, strict=False)
    keep_positions(model, max_length)
    return Classifier(cast(PreTrainedModel, model), student.tokenizer, task, max_length)
