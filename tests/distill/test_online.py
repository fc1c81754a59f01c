from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from pocketlm.data.examples import load_split
from pocketlm.distill.online import Online, corpus_texts, load_corpus
from pocketlm.errors import DataError
from pocketlm.tokenization.align import UNALIGNED, align
from tests.tiny_models import ARCHITECTURES, SINGLE, Architecture, classifier, prepared

TEXTS = [("a quiet film of the plot",), ("",), ("naïve café 日本 😀",), ("loved", "a loud film")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("student", ["bert", "roberta"])
def test_states_are_the_teachers_at_the_students_pieces(
    architecture: Architecture, student: Architecture
) -> None:
    teacher, own = classifier(architecture), classifier(student)
    encoded, pieces = teacher.encode(TEXTS), own.encode(TEXTS)
    said = Online(teacher, encoded, pieces).states_of([3, 0, 2, 1], [0, 3])
    inputs = own.inputs(pieces, [3, 0, 2, 1])
    assert said.mask.shape == inputs["input_ids"].shape
    assert not (said.mask & (inputs["attention_mask"] == 0)).any()
    for row, index in enumerate([3, 0, 2, 1]):
        aligned = align(pieces, encoded, index)
        with torch.no_grad():
            states = teacher.model.base_model(
                **teacher.inputs(encoded, [index]), output_hidden_states=True
            ).hidden_states
        assert said.positions[row, : len(aligned)].tolist() == aligned
        assert (said.positions[row, len(aligned) :] == UNALIGNED).all()
        for place, position in enumerate(aligned):
            if position != UNALIGNED:
                for state in (0, 3):
                    assert torch.allclose(
                        said.values[state][row, place], states[state][0, position], atol=1e-4
                    )
    assert not said.values[3].requires_grad


def test_the_teacher_is_asked_without_dropout() -> None:
    teacher = classifier(hidden_dropout_prob=0.5)
    encoded = teacher.encode(TEXTS)
    online = Online(teacher, encoded, encoded)
    teacher.model.train()
    one, two = (online.states_of([0, 1], [3]).values[3] for _ in range(2))
    assert torch.equal(one, two) and online.width == 32


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.txt", "a film\n\n  the plot \r\na film\n日本\x85 \u2028 one\n"),
        ("c.tsv", "id\ttext\n1\ta film\n2\tthe plot\n3\ta film\n4\t日本\x85 \u2028 one\n"),
        ("c.csv", "text\na film\nthe plot\na film\n日本\x85 \u2028 one\n"),
        ("c.csv", "sentence\na film\nthe plot\n日本\x85 \u2028 one\n"),
        ("c.jsonl", '{"text": "a film"}\n{"text": "the plot"}\n{"text": "日本\x85 \u2028 one"}\n'),
    ],
)
def test_a_corpus_is_a_text_a_line_or_a_column(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert corpus_texts(tmp_path / name) == ["a film", "the plot", "日本\x85 \u2028 one"]
    if not name.endswith(".txt"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        assert corpus_texts(tmp_path / f"{name}.gz") == corpus_texts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.bin", b"x", "c.bin is not a corpus; give a table with a column 'text', or a .txt"),
        ("c.tsv", b"a\tb\n1\t2\n", "c.tsv: the columns are a, b; call the corpus's texts 'text'"),
        ("c.txt", b"\xff\xfe", "c.txt is not UTF-8"),
    ],
)
def test_what_is_no_corpus_is_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        corpus_texts(tmp_path / name)
    assert told in str(error.value)


def test_without_a_corpus_it_is_the_pool(tmp_path: Path) -> None:
    artifact = prepared(tmp_path, SINGLE)
    assert load_corpus(artifact) == load_split(artifact.parts["data"], "train").texts


def test_no_text_of_valid_or_test_is_taken(tmp_path: Path) -> None:
    artifact = prepared(tmp_path, SINGLE)
    held = [load_split(artifact.parts["data"], name).texts[0][0] for name in ("valid", "test")]
    corpus = tmp_path / "corpus.txt"
    artifact = artifact.with_part("corpus_source", corpus)
    written = [held[0], f"  {held[1].upper()} ", "something of its own"]
    corpus.write_text("\n".join(written), encoding="utf-8")
    assert load_corpus(artifact) == [("something of its own",)]
    corpus.write_text("\n".join(held), encoding="utf-8")
    with pytest.raises(DataError, match=r"corpus\.txt: no text that is not in valid or test"):
        load_corpus(artifact)
