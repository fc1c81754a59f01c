"""The controls: each is what it says, on the same rows, and its size is that of a file that suffices."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from pocketlm.artifact import Artifact
from pocketlm.data.examples import Examples, load_split
from pocketlm.measure.controls import (
    TOKEN,
    Controls,
    OneVsRest,
    StaticClassifier,
    linear_logits,
    linear_model,
    ngram_features,
    plain_pieces,
    scored_row,
    tf_idf_label,
    timed,
    with_neighbours,
    without_tags,
)
from pocketlm.stage import Context
from pocketlm.tasks.spans import tags_said
from pocketlm.tasks.task import Task
from tests.conftest import Made
from tests.easy import CUES, LABELS, sentence

SINGLE = Task("classification", pair=False, labels=LABELS)
PAIR = Task("classification", pair=True, labels=("no", "yes"))
VALUE = Task("regression", pair=False)


# A bag of embeddings


def bag(task: Task, width: int = 5) -> StaticClassifier:
    torch.manual_seed(1)
    return StaticClassifier(torch.randn(20, width), task)


@given(st.lists(st.integers(0, 19), min_size=1, max_size=8), st.integers(0, 5), st.booleans())
@settings(deadline=None)
def test_padding_never_changes_what_a_bag_says(ids: list[int], padding: int, pair: bool) -> None:
    model = bag(PAIR if pair else SINGLE)
    cut = len(ids) // 2

    def logits(padded: int) -> torch.Tensor:
        mask = torch.tensor([[1] * len(ids) + [0] * padded])
        segments = torch.tensor([[0] * cut + [1] * (len(ids) - cut) + [0] * padded])
        return model(torch.tensor([ids + [3] * padded]), mask, segments).logits

    torch.testing.assert_close(logits(padding), logits(0))


def test_the_order_of_words_does_not_matter_to_a_bag_and_that_of_texts_does() -> None:
    model, ones = bag(PAIR), torch.ones(1, 4, dtype=torch.long)
    segments = torch.tensor([[0, 0, 1, 1]])
    straight = model(torch.tensor([[1, 2, 3, 4]]), ones, segments).logits
    turned = model(torch.tensor([[2, 1, 4, 3]]), ones, segments).logits
    swapped = model(torch.tensor([[3, 4, 1, 2]]), ones, segments).logits
    torch.testing.assert_close(straight, turned)
    assert not torch.allclose(straight, swapped)


def test_pieces_of_the_second_text_are_told_apart_for_every_kind_of_tokenizer(made: Made) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer.from_file(str(made.pocket / "tokenizer.json"))
    ids = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    # As RoBERTa and MPNet do it: no segments.
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] [SEP] $B [SEP]", special_tokens=list(ids.items())
    )
    encoding = plain_pieces(tokenizer).encode("the film", "a radiant story")
    assert encoding.tokens == ["the", "film", "a", "radiant", "story"]
    assert encoding.type_ids == [0, 0, 1, 1, 1]
    assert tokenizer.encode("the film", "a story").type_ids == [0] * 8


# TF-IDF


def vectorizer(texts: list[str]) -> TfidfVectorizer:
    return TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2)).fit(texts)


def test_features_of_a_pair_do_not_depend_on_its_order_and_know_equal_texts() -> None:
    texts = ["a dull film", "the radiant plot", "a dull plot"]
    fitted = vectorizer(texts)
    straight = ngram_features(fitted, [(texts[0], texts[1]), (texts[2], texts[2])]).toarray()
    turned = ngram_features(fitted, [(texts[1], texts[0]), (texts[2], texts[2])]).toarray()
    np.testing.assert_allclose(straight, turned)
    words = len(fitted.vocabulary_)
    assert straight.shape == (2, 2 * words + 1)
    assert straight[1, -1] == pytest.approx(1), "the cosine of a text with itself"
    assert not straight[1, :words].any(), "where a text differs from itself"


@pytest.mark.parametrize("outputs", [2, 3])
def test_logits_of_a_linear_model_say_what_it_predicts(outputs: int) -> None:
    chance = np.random.default_rng(0)
    features, labels = chance.normal(size=(60, 4)), chance.integers(0, outputs, 60)
    task = dataclasses.replace(SINGLE, labels=LABELS[:outputs])
    model = linear_model(2.0, task).fit(features, labels)
    logits = linear_logits(model, features, task)
    assert logits.shape == (60, outputs)
    assert (logits.argmax(axis=1) == model.predict(features)).all()


def test_a_linear_model_of_numbers_says_its_prediction() -> None:
    features = np.arange(10.0)[:, None]
    model = linear_model(1e6, VALUE).fit(features, 3 * features[:, 0] + 1)
    np.testing.assert_allclose(linear_logits(model, features, VALUE)[:, 0], 3 * features[:, 0] + 1, atol=1e-3)


# The stage


def artifact_of(made: Made, folder: Path, texts: list[str], labels: list[int]) -> tuple[Artifact, Context]:
    """The tiny student with other data."""
    folder.mkdir()
    examples = Examples([(text,) for text in texts], labels)
    for split in ("train", "valid", "test"):
        examples.save(folder / f"{split}.jsonl")
    return made.artifact("Pack").with_part("data", folder), Context(folder, folder)


@pytest.mark.parametrize("signs", ["abcxyz", "!?.,:;", "好坏大小上下", "😀😡🎬👍👎🍿"])
def test_texts_without_a_long_word_are_no_obstacle(signs: str, made: Made, tmp_path: Path) -> None:
    chance = random.Random(0)
    labels = [number % 3 for number in range(60)]
    texts = [" ".join(chance.choices(signs[2 * label :][:2], k=6)) for label in labels]
    artifact, context = artifact_of(made, tmp_path / "data", texts, labels)
    control = Controls().tf_idf(artifact, context)
    assert (control.logits.argmax(axis=1) == labels).mean() > 0.9


def test_the_file_of_tf_idf_holds_all_of_the_model(made: Made, tmp_path: Path) -> None:
    """What is weighed predicts: the logits follow from the file alone."""
    chance = random.Random(3)
    labels = [number % 3 for number in range(90)]
    texts = [sentence(chance, LABELS[label]) for label in labels]
    artifact, context = artifact_of(made, tmp_path / "data", texts, labels)
    control = Controls().tf_idf(artifact, context)
    path = tmp_path / "data" / "tf-idf.safetensors"
    assert control.size_bytes == path.stat().st_size
    with safe_open(path, framework="np") as file:
        coef, intercept, idf = (file.get_tensor(name) for name in ("coef", "intercept", "idf"))
        words = json.loads(file.metadata()["vocabulary"])
    assert control.parameters == coef.size + idf.size
    again = TfidfVectorizer(token_pattern=TOKEN, ngram_range=(1, 2), sublinear_tf=True, vocabulary=words)
    again.idf_ = idf
    logits = again.transform(texts) @ coef.T + intercept
    np.testing.assert_allclose(logits, control.logits, atol=1e-4)


def test_rows_of_the_ledger_have_every_control(made: Made) -> None:
    rows = made.artifact("Controls").figures["controls"]
    assert [row["name"] for row in rows] == ["no distillation", "tf-idf", "static"]
    twin, words, static = rows
    assert twin["size_bytes"] is None and twin["p50_ms"] is None
    assert "logistic regression" in words["label"]
    for row in (words, static):
        assert row["size_bytes"] > 0 and 0 < row["p50_ms"] <= row["p95_ms"] and row["train_seconds"] > 0
        assert row["score"] > 0.9, "the data are easy"
    for row in rows:
        assert row["score_low"] <= row["score"] <= row["score_high"] and row["kind"] == "control"
    assert twin["parameters"] == made.info["parameters"]


def test_controls_of_numbers_know_their_scale(made_of_numbers: Made) -> None:
    rows = {row["name"]: row for row in made_of_numbers.artifact("Controls").figures["controls"]}
    assert "ridge" in rows["tf-idf"]["label"]
    assert rows["tf-idf"]["score"] > 0.8 and rows["static"]["score"] > 0.8


def test_a_static_control_of_numbers_answers_on_the_scale_of_the_labels(
    made_of_numbers: Made, tmp_path: Path
) -> None:
    artifact = made_of_numbers.artifact("Pack")
    control = Controls().static(artifact, Context(tmp_path, tmp_path))
    labels = np.asarray(load_split(artifact.parts["data"], "test").labels)
    assert np.abs(control.logits[:, 0] - labels).mean() < 0.7
    sizes = [(tmp_path / name).stat().st_size for name in ("static.safetensors", "static-tokenizer.json")]
    assert control.size_bytes == sum(sizes)


def test_skipped_controls_leave_no_row(made: Made, tmp_path: Path) -> None:
    artifact = made.artifact("Pack")
    assert Controls(enabled=False)(artifact, Context(tmp_path, tmp_path)).figures["controls"] == []
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_control(made: Made, tmp_path: Path) -> None:
    """Whatever random numbers were drawn before: a run that goes on after a kill has drawn others."""
    found: list[Any] = []
    for number in range(2):
        torch.manual_seed(number)
        (tmp_path / str(number)).mkdir()
        context = Context(tmp_path / str(number), tmp_path / str(number))
        found.append(Controls(seed=4).static(made.artifact("Pack"), context).logits)
    np.testing.assert_array_equal(found[0], found[1])


def test_a_row_is_scored_as_the_metric_says() -> None:
    logits, labels = np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 2, 0])
    row = scored_row(SINGLE, logits, labels)
    assert row["score"] == 0.75 and set(row["other_metrics"]) == {"macro_f1", "matthews"}


def test_what_cannot_be_timed_alone_is_not() -> None:
    assert timed(None, 10) == {"p50_ms": None, "p95_ms": None}
    calls: list[int] = []
    times = timed(calls.append, 7)
    assert set(calls) == set(range(7)) and 0 <= times["p50_ms"] <= times["p95_ms"]


assert set(CUES) == set(LABELS)


# Words and several labels


def test_neighbours_are_means_and_padding_is_none() -> None:
    states = torch.tensor([[[1.0], [2.0], [4.0], [9.0]]])
    found = with_neighbours(states, torch.tensor([[1, 1, 1, 0]]), near=2)
    assert found[0, :3].tolist() == [[0, 1, 3], [1, 2, 4], [1.5, 4, 0]]


def test_padding_never_changes_what_a_bag_says_of_a_word() -> None:
    task = Task("joint", pair=False, labels=("a", "b"), tags=("B-x", "O"))
    model = bag(task)
    ids, mask = torch.tensor([[3, 4, 5, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    long, short = (model(ids[:, :n], mask[:, :n], torch.zeros_like(ids[:, :n])) for n in (5, 3))
    torch.testing.assert_close(long.word_logits[:, :3], short.word_logits)
    torch.testing.assert_close(long.logits, short.logits)
    assert bag(Task("tokens", pair=False, tags=("B-x", "O")))(ids, mask, 0 * ids).logits is None


def test_one_regression_a_label_and_constants_where_there_is_nothing_to_tell() -> None:
    chance = np.random.default_rng(0)
    features = sparse.csr_matrix(chance.normal(size=(60, 4)))
    wanted = np.stack([features.toarray()[:, 0] > 0, np.ones(60, bool), np.zeros(60, bool)], axis=1)
    model = OneVsRest(8.0, features, wanted)
    assert (model.predict(features)[:, 0] == wanted[:, 0]).mean() > 0.9
    assert model.predict(features)[:, 1].all() and not model.predict(features)[:, 2].any()
    task = Task("multilabel", pair=False, labels=("a", "b", "c"))
    assert (linear_logits(model, features, task) >= 0).tolist() == model.predict(features).tolist()


def test_an_intent_alone_leaves_every_word_outside() -> None:
    task = Task("joint", pair=False, labels=("a", "b"), tags=("B-x", "O"))
    said = without_tags(task, np.eye(2), [("go to x",), ("stop",)])
    assert tags_said(task, said) == [["O"] * 3, ["O"]]
    assert tf_idf_label(task) == "TF-IDF + logistic regression, intent only (every word O)"
