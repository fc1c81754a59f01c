"""Build a student from the teacher's own weights: fewer layers, fewer neurons, a small vocabulary.

A student that starts from chosen layers of its teacher has most of what general distillation would
have to teach it (Sanh et al. 2019, DistilBERT, https://arxiv.org/abs/1910.01108, section 3), and on
two cores there is no time for general distillation.

Deviations: FFN neurons are chosen too. The saliency of a neuron is its mean |activation| on training
texts times the norm of its outgoing weights: what it adds to the residual stream on average.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.errors import RecipeError, TeacherError
from pocketlm.models.load import EVALUATION_BATCH, Classifier, parameters_of, set_dropout
from pocketlm.stage import Context
from pocketlm.tokenization.encode import Encoded
from pocketlm.tokenization.trim import trim

CALIBRATION_EXAMPLES = 512


@dataclass(frozen=True)
class BuildStudent:
    """Cut a student out of the teacher.

    Args:
        layers: Teacher layers to keep, ascending from 0; or how many, spread evenly with the last kept.
        intermediate_size: FFN neurons to keep in every layer; None keeps all.
        vocabulary: Pieces to keep; None keeps all.
    """

    layers: int | tuple[int, ...] = 3
    intermediate_size: int | None = None
    vocabulary: int | None = 8000

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the parts `student` and `untrained_student` and the figures of its shape and parameters.

        Raises:
            RecipeError: the teacher has fewer layers or neurons than asked for.
            TeacherError: the teacher is not of the BERT family.
        """
        task, max_length = artifact.task, artifact.figures["max_length"]
        teacher = Classifier.load(artifact.parts["teacher"], task, max_length)
        texts = load_split(artifact.parts["data"], "train").texts
        encoder = encoder_layers(teacher.model)
        layers = chosen_layers(self.layers, len(encoder))
        model = copy.deepcopy(teacher.model)
        if self.intermediate_size is not None:
            saliency = neuron_saliency(teacher, teacher.encode(texts[:CALIBRATION_EXAMPLES]))
            keep_neurons(model, saliency, self.intermediate_size)
        keep_layers(model, layers)
        tokenizer = teacher.tokenizer
        if self.vocabulary is not None:
            trimmed = trim(tokenizer, texts, self.vocabulary)
            tokenizer = trimmed.tokenizer
            keep_pieces(model, trimmed.teacher_ids)
        keep_positions(model, max_length)
        # A student has no capacity to spare, and its targets are soft.
        set_dropout(model.config, 0.0)
        student = Classifier(model, tokenizer, task, max_length)
        folder = context.folder / "student"
        student.save(folder)
        config = model.config
        shape = {
            "layers": len(layers),
            "teacher_layers": list(layers),
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "heads": config.num_attention_heads,
            "vocabulary": config.vocab_size,
        }
        return (
            artifact.with_part("student", folder)
            .with_part("untrained_student", folder)
            .with_figures(
                shape=shape, parameters=parameters_of(model), teacher_parameters=parameters_of(teacher.model)
            )
        )


def chosen_layers(layers: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Teacher layers that a student keeps: 3 of 6 is (1, 3, 5).

    Raises:
        RecipeError: not strictly ascending within 0 … depth - 1.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= depth:
            raise RecipeError(
                f"layers={layers} is out of range; the teacher has {depth}, so allowed: 1 to {depth}"
            )
        return tuple((index + 1) * depth // layers - 1 for index in range(layers))
    chosen = tuple(layers)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= depth:
        raise RecipeError(
            f"layers={list(chosen)} is not a strictly ascending list of the teacher's layers 0 to {depth - 1}"
        )
    return chosen


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of transformer layers.

    Raises:
        TeacherError: the model is not of the BERT family.
    """
    base = cast(Any, model).base_model
    encoder = getattr(base, "encoder", None) or getattr(base, "transformer", None)
    layers = getattr(encoder, "layer", None)
    if not isinstance(layers, nn.ModuleList) or not hasattr(layers[0], "intermediate"):
        raise TeacherError(
            f"{type(model).__name__} is not built of BERT-like layers, so no student can be cut out of it "
            "yet; use a BERT, RoBERTa, ELECTRA, MPNet or MegatronBERT teacher"
        )
    return layers


def _ffn(layer: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The linear maps into and out of a layer's FFN neurons."""
    maps = layer.get_submodule("intermediate.dense"), layer.get_submodule("output.dense")
    return cast(tuple[nn.Linear, nn.Linear], maps)


def keep_layers(model: nn.Module, layers: Sequence[int]) -> None:
    """Keep only the named layers, in place."""
    stack = encoder_layers(model)
    kept = [stack[index] for index in layers]
    del stack[:]
    stack.extend(kept)
    cast(Any, model).config.num_hidden_layers = len(kept)


@torch.no_grad()
def neuron_saliency(teacher: Classifier, encoded: Encoded) -> list[Tensor]:
    """Mean |activation| · ‖outgoing weights‖ of every FFN neuron: one [intermediate] a layer.

    Padding is left out of the mean.
    """
    layers = encoder_layers(teacher.model)
    outgoing = [_ffn(layer)[1] for layer in layers]
    sums = [torch.zeros(falling.in_features) for falling in outgoing]
    mask = torch.zeros(0)

    def collect(index: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, arguments: Any, activation: Tensor) -> None:
            del module, arguments
            sums[index] += (activation.abs() * mask[..., None]).sum(dim=(0, 1))

        return hook

    hooks = [
        layer.get_submodule("intermediate").register_forward_hook(collect(index))
        for index, layer in enumerate(layers)
    ]
    teacher.model.eval()
    for start in range(0, len(encoded), EVALUATION_BATCH):
        inputs = teacher.inputs(encoded, range(start, min(start + EVALUATION_BATCH, len(encoded))))
        mask = inputs["attention_mask"].float()
        teacher.model(**inputs)
    for hook in hooks:
        hook.remove()
    tokens = sum(encoded.lengths)
    return [
        total / tokens * falling.weight.norm(dim=0) for total, falling in zip(sums, outgoing, strict=True)
    ]


@torch.no_grad()
def keep_neurons(model: nn.Module, saliency: Sequence[Tensor], size: int) -> None:
    """Keep the `size` most salient FFN neurons of every layer, in place.

    Raises:
        RecipeError: the layers have fewer neurons.
    """
    layers = encoder_layers(model)
    available = _ffn(layers[0])[1].in_features
    if not 1 <= size <= available:
        raise RecipeError(
            f"intermediate_size={size} is out of range; the teacher has {available} neurons, "
            f"so allowed: 1 to {available}"
        )
    for layer, scores in zip(layers, saliency, strict=True):
        kept = scores.topk(size).indices.sort().values
        rising, falling = _ffn(layer)
        rising.weight = nn.Parameter(rising.weight[kept].clone())
        rising.bias = nn.Parameter(rising.bias[kept].clone())
        falling.weight = nn.Parameter(falling.weight[:, kept].clone())
        rising.out_features = falling.in_features = size
    cast(Any, model).config.intermediate_size = size


@torch.no_grad()
def keep_pieces(model: nn.Module, teacher_ids: Sequence[int]) -> None:
    """Keep the embedding rows of the teacher's pieces `teacher_ids`, ascending, in place."""
    network = cast(Any, model)
    embedding, config = network.get_input_embeddings(), network.config
    new_ids = {old: new for new, old in enumerate(teacher_ids)}
    smaller = nn.Embedding(len(new_ids), embedding.embedding_dim, new_ids.get(embedding.padding_idx))
    smaller.weight = nn.Parameter(embedding.weight[torch.tensor(teacher_ids)].clone())
    network.set_input_embeddings(smaller)
    config.vocab_size = len(new_ids)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, new_ids.get(getattr(config, name)))
    # The RoBERTa family counts positions from behind the id of its padding piece, which may have moved.
    embeddings, padding = network.base_model.embeddings, smaller.padding_idx
    before = getattr(embeddings, "padding_idx", None)
    if before is not None and padding is not None and before != padding:
        embeddings.padding_idx = padding
        rows = embeddings.position_embeddings.num_embeddings
        _take_positions(model, before - padding, rows, padding)


@torch.no_grad()
def keep_positions(model: nn.Module, max_length: int) -> None:
    """Keep the position embeddings that inputs of `max_length` pieces use, in place."""
    table = getattr(cast(Any, model).base_model.embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return
    first = 0 if table.padding_idx is None else table.padding_idx + 1
    _take_positions(model, 0, min(first + max_length, table.num_embeddings), table.padding_idx)


def _take_positions(model: nn.Module, start: int, stop: int, padding: int | None) -> None:
    """Make rows `start` to `stop` of the position embeddings the whole table, in place."""
    embeddings, size = cast(Any, model).base_model.embeddings, stop - start
    table = embeddings.position_embeddings
    smaller = nn.Embedding(size, table.embedding_dim, padding)
    smaller.weight = nn.Parameter(table.weight[start:stop].clone())
    embeddings.position_embeddings = smaller
    for name in ("position_ids", "token_type_ids"):
        if isinstance(getattr(embeddings, name, None), Tensor):
            setattr(embeddings, name, getattr(embeddings, name)[:, :size])
    cast(Any, model).config.max_position_embeddings = size
