"""What a pocket has to beat: the same student without distillation, and two cheap classifiers.

A distilled model that loses to TF-IDF with logistic regression, or to a bag of static embeddings, is
not worth its bytes, and its report says so.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.finetune import fold_scale, label_loss, target_scale, valid_score
from pocketlm.measure.energy import Meter
from pocketlm.measure.speed import interleave
from pocketlm.metrics import bootstrap_interval, headline, score
from pocketlm.models.load import Classifier, parameters_of
from pocketlm.stage import Context
from pocketlm.task import Task
from pocketlm.train import Precision, Settings, train

TIMED_ROUNDS = 200
STRENGTHS = (0.5, 2.0, 8.0)
"""Inverse regularization strengths tried on valid."""
TOKEN = r"\w+|[^\w\s]+"
"""Words of any length and runs of signs, so that no text is without a token."""
STATIC = Settings(epochs=15, learning_rate=2e-3, patience=3, precision="fp32")


@dataclass(frozen=True)
class Control:
    """A trained control.

    Args:
        logits: On test, [examples, outputs].
        answer: Answers one test text, given its index; None where it runs as the pocket does.
        parameters: How many it has.
        size_bytes: Of its file; None where it is the pocket's.
    """

    logits: np.ndarray
    answer: Callable[[int], None] | None
    parameters: int
    size_bytes: int | None


@dataclass(frozen=True)
class Controls:
    """Train the controls on the same rows and score them on the same test split.

    Args:
        enabled: False skips them, and the report says that they were skipped.
        epochs: Of the twin, at most; it stops when valid gets worse.
        learning_rate: Of the twin.
    """

    enabled: bool = True
    epochs: int = 4
    learning_rate: float = 5e-5
    batch_size: int = 32
    patience: int | None = 2
    precision: Precision = "auto"
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        Settings.of(self)  # out of range is told at once

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the figure `controls`: rows of the ledger, empty where skipped."""
        if not self.enabled:
            return artifact.with_figures(controls=[])
        linear = "ridge" if artifact.task.kind == "regression" else "logistic regression"
        labels = {
            "no distillation": ("same student, labels only", self.twin),
            "tf-idf": (f"TF-IDF + {linear}", self.tf_idf),
            "static": ("static embeddings", self.static),
        }
        rows: list[dict[str, Any]] = []
        for name, (label, make) in labels.items():
            with Meter() as meter:
                began = time.monotonic()
                control = make(artifact, context)
                seconds = time.monotonic() - began
            test = load_split(artifact.parts["data"], "test")
            row = scored_row(artifact.task, control.logits, np.asarray(test.labels))
            timings = timed(control.answer, len(test))
            rows.append(
                {
                    "name": name,
                    "kind": "control",
                    "label": label,
                    **row,
                    "parameters": control.parameters,
                    "size_bytes": control.size_bytes,
                    **timings,
                    "train_seconds": seconds,
                    "energy_wh": meter.energy_wh,
                }
            )
        return artifact.with_figures(controls=rows)

    def twin(self, artifact: Artifact, context: Context) -> Control:
        """The pocket's own starting weights, trained on the labels alone."""
        model = Classifier.load(
            artifact.parts["untrained_student"], artifact.task, artifact.figures["max_length"]
        )
        fit(model, artifact, context, Settings.of(self), "control: no distillation")
        test = load_split(artifact.parts["data"], "test")
        return Control(model.logits(model.encode(test.texts)), None, parameters_of(model.model), None)

    def tf_idf(self, artifact: Artifact, context: Context) -> Control:
        """Word uni- and bigrams under a linear model, its strength chosen on valid."""
        task = artifact.task
        train_, valid, test = (
            load_split(artifact.parts["data"], name) for name in ("train", "valid", "test")
        )
        min_df = 2 if len(train_) > 1000 else 1
        vectorizer = cast(
            Any, TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True, min_df=min_df)
        )
        vectorizer.fit([text for texts in train_.texts for text in texts])
        features, unseen = (ngram_features(vectorizer, split.texts) for split in (train_, valid))
        tried: list[tuple[float, Any]] = []
        with context.progress.task("control: TF-IDF", len(STRENGTHS)) as advance:
            for strength in STRENGTHS:
                model = linear_model(strength, task)
                model.fit(features, train_.labels)
                scores = score(task, linear_logits(model, unseen, task), np.asarray(valid.labels))
                tried.append((scores[task.metric], model))
                advance(1)
        _, chosen = max(tried, key=itemgetter(0))
        path = context.folder / "tf-idf.safetensors"
        arrays = {"coef": chosen.coef_, "intercept": chosen.intercept_, "idf": vectorizer.idf_}
        tensors = {
            name: torch.from_numpy(np.array(array, np.float32, order="C", ndmin=1))
            for name, array in arrays.items()
        }
        words = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
        save_file(tensors, path, {"vocabulary": json.dumps(words)})
        logits = linear_logits(chosen, ngram_features(vectorizer, test.texts), task)

        def answer(index: int) -> None:
            chosen.predict(ngram_features(vectorizer, test.texts[index : index + 1]))

        return Control(logits, answer, chosen.coef_.size + vectorizer.idf_.size, path.stat().st_size)

    def static(self, artifact: Artifact, context: Context) -> Control:
        """The mean of the teacher's own word embeddings under a linear layer, all of it trained."""
        donor = Classifier.load(
            artifact.parts["untrained_student"], artifact.task, artifact.figures["max_length"]
        )
        table = cast(Any, donor.model).get_input_embeddings().weight.detach().clone()
        torch.manual_seed(self.seed)
        model = Classifier(
            cast(Any, StaticClassifier(table, artifact.task)),
            plain_pieces(donor.tokenizer),
            artifact.task,
            donor.max_length,
        )
        fit(model, artifact, context, replace(STATIC, seed=self.seed), "control: static embeddings")
        path = context.folder / "static.safetensors"
        save_file({name: tensor.half() for name, tensor in model.model.state_dict().items()}, path)
        model.tokenizer.save(str(context.folder / "static-tokenizer.json"), pretty=False)
        size = path.stat().st_size + (context.folder / "static-tokenizer.json").stat().st_size
        test = load_split(artifact.parts["data"], "test")

        def answer(index: int) -> None:
            model.logits(model.encode(test.texts[index : index + 1]))

        return Control(model.logits(model.encode(test.texts)), answer, parameters_of(model.model), size)


class StaticClassifier(nn.Module):
    """A bag of embeddings: their mean, for a pair also difference and product, under a linear layer.

    After model2vec's classifiers and Joulin et al. 2017, fastText (https://arxiv.org/abs/1607.01759).
    """

    def __init__(self, table: Tensor, task: Task) -> None:
        super().__init__()
        self.embeddings = nn.Embedding.from_pretrained(table, freeze=False)
        self.classifier = nn.Linear(table.shape[1] * (4 if task.pair else 1), task.outputs)
        self.config = SimpleNamespace(type_vocab_size=2)
        self.pair = task.pair

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> SimpleNamespace:
        """Logits [batch, outputs] of padded ids [batch, length]."""
        states = self.embeddings(input_ids)

        def mean(mask: Tensor) -> Tensor:
            weights = mask.to(states.dtype)[..., None]
            return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)

        if not self.pair:
            return SimpleNamespace(logits=self.classifier(mean(attention_mask)))
        first = mean(attention_mask * (1 - token_type_ids))
        second = mean(attention_mask * token_type_ids)
        joined = torch.cat([first, second, (first - second).abs(), first * second], dim=-1)
        return SimpleNamespace(logits=self.classifier(joined))


def plain_pieces(tokenizer: Tokenizer) -> Tokenizer:
    """The same pieces without special tokens; the second text of a pair has segment 1, whatever the model."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    cast(Any, plain).post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return plain


def fit(
    model: Classifier, artifact: Artifact, context: Context, settings: Settings, description: str
) -> None:
    """Train any classifier on the labels alone, its best evaluation kept."""
    train_, valid = (load_split(artifact.parts["data"], name) for name in ("train", "valid"))
    encoded, valid_encoded = model.encode(train_.texts), model.encode(valid.texts)
    mean, scale = target_scale(train_, artifact.task)
    fold_scale(model.model, -mean / scale, 1 / scale)
    train(
        model.model,
        label_loss(model, encoded, (np.asarray(train_.labels) - mean) / scale),
        encoded.lengths,
        settings,
        lambda: valid_score(model, valid_encoded, valid),
        context.checkpoints / description.rpartition(" ")[2],
        context.progress,
        description,
    )
    fold_scale(model.model, mean, scale)


def ngram_features(vectorizer: TfidfVectorizer, texts: Sequence[Sequence[str]]) -> sparse.csr_matrix:
    """TF-IDF of a text; of a pair, what both share and where they differ, and the cosine."""
    transform = cast(Callable[[list[str]], Any], vectorizer.transform)
    first = transform([text[0] for text in texts])
    if len(texts[0]) == 1:
        return first
    second = transform([text[1] for text in texts])
    shared = first.multiply(second)
    parts = [abs(first - second), shared, shared.sum(axis=1)]
    return cast(sparse.csr_matrix, sparse.hstack(parts, format="csr"))


def linear_model(strength: float, task: Task) -> Any:
    """A ridge or a logistic regression; `strength` is the inverse of its regularization."""
    if task.kind == "regression":
        return Ridge(alpha=1 / strength)
    return LogisticRegression(C=strength, max_iter=300)


def linear_logits(model: Any, features: sparse.csr_matrix, task: Task) -> np.ndarray:
    """[examples, outputs]; a binary logistic regression says only how far it leans to the second label."""
    values = np.asarray(
        model.predict(features) if task.kind == "regression" else model.decision_function(features)
    )
    if task.kind == "classification" and values.ndim == 1:
        return np.stack([np.zeros_like(values), values], axis=1)
    return values.reshape(len(values), -1)


def scored_row(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Headline score with its bootstrap interval, and the other metrics."""
    scores = score(task, logits, labels)
    low, high = bootstrap_interval(headline(task, logits, labels), len(labels))
    others = {name: value for name, value in scores.items() if name != task.metric}
    return {"score": scores[task.metric], "score_low": low, "score_high": high, "other_metrics": others}


def timed(answer: Callable[[int], None] | None, inputs: int) -> dict[str, float | None]:
    """p50 and p95 of answering one text, in milliseconds."""
    if answer is None:
        return {"p50_ms": None, "p95_ms": None}
    timings = interleave({"control": answer}, inputs, TIMED_ROUNDS, warmup=20)
    return {"p50_ms": timings.p50("control"), "p95_ms": timings.p95("control")}
