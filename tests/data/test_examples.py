from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketlm.artifact import Artifact
from pocketlm.data.examples import Examples, load_pool, load_split, load_texts, save_texts

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.tuples(TEXTS)) | st.lists(st.tuples(TEXTS, TEXTS)),
    labels=st.just(st.integers(0, 9)) | st.just(st.floats(allow_nan=False, allow_infinity=False)),
    data=st.data(),
)
def test_saving_and_loading_changes_nothing(tmp_path: Path, texts, labels, data) -> None:
    examples = Examples(texts, [data.draw(labels) for _ in texts])
    examples.save(tmp_path / "train.jsonl")
    loaded = load_split(tmp_path, "train")
    assert loaded == examples
    assert [type(label) for label in loaded.labels] == [type(label) for label in examples.labels]
    assert len(loaded) == len(texts)
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    good = Examples([("a",)], [0])
    good.save(path)
    with pytest.raises(ValueError, match="zip"):
        Examples([("b",), ("c",)], [0]).save(path)
    assert Examples.load(path) == good


def test_take_follows_the_indices() -> None:
    examples = Examples([("a",), ("b",), ("c",)], [0, 1, 2])
    assert examples.take([2, 0, 2]) == Examples([("c",), ("a",), ("c",)], [2, 0, 2])
    assert len(examples.take([])) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(st.tuples(TEXTS)) | st.lists(st.tuples(TEXTS, TEXTS)))
def test_texts_alone_are_saved_and_loaded(tmp_path: Path, texts) -> None:
    save_texts(texts, tmp_path / "unlabeled.jsonl")
    assert load_texts(tmp_path / "unlabeled.jsonl") == texts


def test_the_pool_is_train_then_unlabeled_then_augmented(tmp_path: Path) -> None:
    data, more = tmp_path / "data", tmp_path / "augmented"
    data.mkdir()
    more.mkdir()
    Examples([("a",), ("b",)], [1, 0]).save(data / "train.jsonl")
    Examples([("test",)], [1]).save(data / "test.jsonl")
    artifact = Artifact("start", parts={"data": data})
    assert load_pool(artifact).texts == [("a",), ("b",)]
    save_texts([("new",)], more / "augmented.jsonl")
    assert load_pool(artifact.with_part("augmented", more)).texts == [("a",), ("b",), ("new",)]
    save_texts([("raw",)], data / "unlabeled.jsonl")
    pool = load_pool(artifact.with_part("augmented", more))
    assert pool.texts == [("a",), ("b",), ("raw",), ("new",)]
    assert pool.labels == [1, 0]
    assert len(pool) == 4
