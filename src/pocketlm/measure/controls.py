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
from pocketlm.measure.energy import Meter
from pocketlm.models.load import Classifier, parameters_of
from pocketlm.stage import Context
from pocketlm.supervised import fold_scale, label_loss, target_scale, targets_of, valid_score
from pocketlm.tasks.metrics import Labels, Logits, bootstrap_interval, headline, intents, multi_hot, score
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import WordLogits, WordSums
from pocketlm.timing import interleave
from pocketlm.train import Precision, Settings, train

TIMED_ROUNDS = 200
STRENGTHS = (0.5, 2.0, 8.0)
"""Inverse regularization strengths tried on valid."""
TOKEN = r"\w+|[^\w\s]+"
"""Words of any length and runs of signs, so that no text is without a token."""
NEAR = 2
"""Pieces on each side that a bag of embeddings looks at for a tag."""
STATIC = Settings(epochs=15, learning_rate=2e-3, patience=3, precision="fp32")


@dataclass(frozen=True)
class Control:
    """A trained control.

    Args:
        logits: On test, [examples, outputs], or `WordLogits`.
        answer: Answers one test text, given its index; None where it runs as the pocket does.
        parameters: How many it has.
        size_bytes: Of its file; None where it is the pocket's.
    """

    logits: Logits
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
    learning_rate: float = 2e-4
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
        labels = {
            "no distillation": ("same student, labels only", self.twin),
            "tf-idf": (tf_idf_label(artifact.task), self.tf_idf),
            "static": ("static embeddings", self.static),
        }
        # A bag of words has no place for a tag, and neither of the two can choose a part of a context.
        missing = {"tokens": ("tf-idf",), "qa": ("tf-idf", "static")}.get(artifact.task.kind, ())
        labels = {name: made for name, made in labels.items() if name not in missing}
        rows: list[dict[str, Any]] = []
        for name, (label, make) in labels.items():
            with Meter() as meter:
                began = time.monotonic()
                control = make(artifact, context)
                seconds = time.monotonic() - began
            test = load_split(artifact.parts["data"], "test")
            row = scored_row(artifact.task, control.logits, test.labels)
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
                model = fitted(strength, task, features, train_.labels)
                said = linear_logits(model, unseen, task)
                tried.append((linear_score(task, said, valid.labels), model))
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
        logits = without_tags(task, logits, test.texts) if task.kind == "joint" else logits

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

    A word's tag comes from the embedding of its first piece and the means of the `NEAR` pieces before and
    after it, under a linear layer.

    After model2vec's classifiers and Joulin et al. 2017, fastText (https://arxiv.org/abs/1607.01759).
    """

    def __init__(self, table: Tensor, task: Task) -> None:
        super().__init__()
        self.embeddings = nn.Embedding.from_pretrained(table, freeze=False)
        width = table.shape[1]
        self.classifier = nn.Linear(width * (4 if task.pair else 1), task.outputs) if task.outputs else None
        self.word_classifier = nn.Linear(3 * width, task.word_outputs) if task.word_outputs else None
        self.config = SimpleNamespace(type_vocab_size=2)
        self.pair = task.pair

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> SimpleNamespace:
        """`logits` [batch, outputs], `word_logits` [batch, length, word_outputs] of ids [batch, length]."""
        states = self.embeddings(input_ids)
        logits = (
            None
            if self.classifier is None
            else self.classifier(self._text(states, attention_mask, token_type_ids))
        )
        words = None
        if self.word_classifier is not None:
            words = self.word_classifier(with_neighbours(states, attention_mask))
        return SimpleNamespace(logits=logits, word_logits=words)

    def _text(self, states: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:

        def mean(mask: Tensor) -> Tensor:
            weights = mask.to(states.dtype)[..., None]
            return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)

        if not self.pair:
            return mean(attention_mask)
        first = mean(attention_mask * (1 - token_type_ids))
        second = mean(attention_mask * token_type_ids)
        return torch.cat([first, second, (first - second).abs(), first * second], dim=-1)


def with_neighbours(states: Tensor, mask: Tensor, near: int = NEAR) -> Tensor:
    """Each position beside the means of the positions before and after it; padding is no neighbour.

    Args:
        states: [batch, length, width].
        mask: Not 0 where a position is text, [batch, length].
        near: Positions on each side.

    Returns:
        [batch, length, 3 · width]: before, itself, after; 0 where there is none.
    """
    weights = mask.to(states.dtype)[..., None]
    length = states.shape[1]
    padded = nn.functional.pad(torch.cat([states * weights, weights], dim=-1), (0, 0, near, near))

    def mean(offsets: range) -> Tensor:
        total = torch.stack([padded[:, near + offset : near + offset + length] for offset in offsets]).sum(
            dim=0
        )
        return total[..., :-1] / total[..., -1:].clamp_min(1)

    return torch.cat([mean(range(-near, 0)), states, mean(range(1, near + 1))], dim=-1)


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
    numbers = artifact.task.kind == "regression"
    if numbers:
        fold_scale(model.model, -mean / scale, 1 / scale)
    train(
        model.model,
        label_loss(model, encoded, targets_of(train_, artifact.task, mean, scale)),
        encoded.lengths,
        settings,
        lambda: valid_score(model, valid_encoded, valid),
        context.checkpoints / description.rpartition(" ")[2],
        context.progress,
        description,
    )
    if numbers:
        fold_scale(model.model, mean, scale)


def tf_idf_label(task: Task) -> str:
    """What the row of the TF-IDF control is called."""
    linear = {"regression": "ridge", "multilabel": "one logistic regression a label"}.get(
        task.kind, "logistic regression"
    )
    return f"TF-IDF + {linear}" + (", intent only (every word O)" if task.kind == "joint" else "")


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


class OneVsRest:
    """A logistic regression for each label of its own; a label that all or none have is a constant.

    Args:
        strength: Inverse of the regularization.
        features: [examples, ngrams].
        wanted: Which example has which label, bool [examples, labels].
    """

    def __init__(self, strength: float, features: sparse.csr_matrix, wanted: np.ndarray) -> None:
        labels = wanted.shape[1]
        self.coef_ = np.zeros((labels, cast(Any, features).shape[1]))
        self.intercept_ = np.where(wanted.all(axis=0), 1.0, -1.0)
        for place in range(labels):
            if 0 < wanted[:, place].sum() < len(wanted):
                model: Any = LogisticRegression(C=strength, max_iter=300)
                model.fit(features, wanted[:, place])
                self.coef_[place], self.intercept_[place] = model.coef_[0], model.intercept_[0]

    def decision_function(self, features: sparse.csr_matrix) -> np.ndarray:
        """Logits, [examples, labels]."""
        return cast(Any, features) @ self.coef_.T + self.intercept_

    def predict(self, features: sparse.csr_matrix) -> np.ndarray:
        """Which labels each example gets, bool [examples, labels]."""
        return self.decision_function(features) >= 0


def fitted(strength: float, task: Task, features: sparse.csr_matrix, labels: Labels) -> Any:
    """The linear model of a task; of a joint one, of its intents."""
    if task.kind == "multilabel":
        return OneVsRest(strength, features, multi_hot(task, labels))
    model = linear_model(strength, task)
    model.fit(features, intents(labels) if task.kind == "joint" else labels)
    return model


def linear_score(task: Task, logits: np.ndarray, labels: Labels) -> float:
    """The headline metric; of a joint task, the share of intents that are right."""
    if task.kind == "joint":
        return float((logits.argmax(axis=1) == intents(labels)).mean())
    return score(task, logits, labels)[task.metric]


def without_tags(task: Task, logits: np.ndarray, texts: Sequence[Sequence[str]]) -> WordLogits:
    """Logits of the whole texts with no word in a span."""
    return WordSums(task, texts).logits(logits)


def linear_logits(model: Any, features: sparse.csr_matrix, task: Task) -> np.ndarray:
    """[examples, outputs]; a binary logistic regression says only how far it leans to the second label."""
    values = np.asarray(
        model.predict(features) if task.kind == "regression" else model.decision_function(features)
    )
    if task.kind in ("classification", "joint") and values.ndim == 1:
        return np.stack([np.zeros_like(values), values], axis=1)
    return values.reshape(len(values), -1)


def scored_row(task: Task, logits: Logits, labels: Labels) -> dict[str, Any]:
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
