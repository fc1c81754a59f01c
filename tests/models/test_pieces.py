"""Embeddings of new pieces, factorised tables, and starts from another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pocketlm.errors import RecipeError, TeacherError
from pocketlm.export.onnx import export, largest_difference
from pocketlm.models.factorize import factorize, truncated
from pocketlm.models.load import Classifier
from pocketlm.models.pieces import embed_pieces, spelled
from pocketlm.models.student import BuildStudent, even_layers
from pocketlm.stage import Context
from pocketlm.tokenization.learn import learn
from tests.tiny import KINDS, Kind, sentences, tokenizer
from tests.tiny_models import MAX_LENGTH, PAIR, SINGLE, Architecture, classifier, examples_of, prepared

TEXTS = [(text,) for text in sentences(60)]
ODD = ["", "naïve café 😀🎬 日本映画", "unlovely understand 3", "q-z'k"]


def unknown(made: Tokenizer, text: str) -> int:
    """How many unknown pieces a text is cut into."""
    return sum(piece in ("[UNK]", "<unk>") for piece in made.encode(text, add_special_tokens=False).tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_vocabulary_spells_what_the_teacher_spells(kind: Kind) -> None:
    old = tokenizer(kind)
    new = learn(old, TEXTS, 10_000)
    ids = sorted(new.get_vocab().values())
    assert ids == list(range(len(ids)))
    for text in [*(text for (text,) in TEXTS), *ODD]:
        assert unknown(new, text) <= unknown(old, text)
        assert old.decode(old.encode(text).ids) == new.decode(new.encode(text).ids)
    single, pair = new.encode("film"), new.encode("film", "plot")
    assert single.tokens[0] == old.encode("film").tokens[0]
    assert pair.type_ids[-1] == old.encode("film", "plot").type_ids[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_learned_piece_is_spelled_by_the_teachers(kind: Kind) -> None:
    old = tokenizer(kind)
    new = learn(old, [("filmfilm plotted triumphs quietly",)] * 20, 10_000)
    for piece, index in new.get_vocab().items():
        ids = spelled(old, piece, new)
        assert ids
        if old.token_to_id(piece) is None and kind != "byte-bpe":
            parts = [old.id_to_token(part).removeprefix("##") for part in ids]
            assert "".join(parts) == piece.removeprefix("##"), index


def test_a_known_piece_keeps_its_row_and_a_new_one_is_the_mean() -> None:
    made = classifier()
    new = learn(made.tokenizer, [("lovingly lovingly filming film",)] * 9, 10_000)
    rows = embed_pieces(made.model, made.tokenizer, new)
    table = made.model.get_input_embeddings().weight
    assert torch.equal(rows[new.token_to_id("film")], table[made.tokenizer.token_to_id("film")])
    assert new.token_to_id("lovingly") is not None
    parts = [made.tokenizer.token_to_id(piece) for piece in ("loving", "##ly")]
    assert torch.allclose(rows[new.token_to_id("lovingly")], table[parts].mean(dim=0))


def test_a_piece_inside_a_word_is_cut_as_inside_a_word() -> None:
    old = tokenizer("wordpiece")
    new = learn(old, [("xed xed",)], 10)
    wanted = [old.token_to_id("##ing"), old.token_to_id("##s")]
    assert spelled(old, "##ings", new) == wanted
    assert spelled(old, "##Ω", new) == []


@pytest.mark.parametrize("architecture", ["bert", "roberta", "mpnet"])
def test_a_student_of_learned_pieces(tmp_path: Path, architecture: Architecture) -> None:
    student = built(tmp_path, classifier(architecture), BuildStudent(vocabulary=400, vocabulary_from="text"))
    logits = student.logits(student.encode(TEXTS))
    assert np.isfinite(logits).all()
    assert student.model.config.vocab_size == student.tokenizer.get_vocab_size()
    pad = student.model.config.pad_token_id
    assert student.tokenizer.id_to_token(pad) in ("[PAD]", "<pad>")


def built(
    folder: Path, teacher: Classifier, stage: BuildStudent, start: Classifier | None = None
) -> Classifier:
    artifact = prepared(folder, SINGLE, train=120)
    teacher.save(folder / "teacher")
    artifact = artifact.with_part("teacher", folder / "teacher")
    if start is not None:
        start.save(folder / "start")
        artifact = artifact.with_part("start_source", folder / "start")
    artifact = stage(artifact, Context(folder, folder / "checkpoints"))
    made = Classifier.load(artifact.parts["student"], SINGLE, MAX_LENGTH)
    made.figures = artifact.figures["shape"]  # pyright: ignore[reportAttributeAccessIssue]
    return made


FACTORIZED: tuple[Architecture, ...] = ("bert", "roberta", "distilbert", "electra")


@pytest.mark.parametrize("architecture", FACTORIZED)
@pytest.mark.parametrize("task", [SINGLE, PAIR], ids=["single", "pair"])
def test_a_factorised_table_of_full_rank_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, architecture: Architecture, task
) -> None:
    """Half the hidden units of every table are silent, so half the columns hold all of it."""
    teacher = classifier(architecture, task)
    with torch.no_grad():
        for table in teacher.model.base_model.embeddings.children():
            if isinstance(table, torch.nn.Embedding):
                table.weight[:, ::2] = 0
    small = Classifier(factorize(teacher.model, 16), teacher.tokenizer, task, MAX_LENGTH)
    encoded = teacher.encode([*examples_of(task, 20).texts, ("",) * (1 + task.pair)])
    assert np.allclose(small.logits(encoded), teacher.logits(encoded), atol=1e-5)
    inputs = [made.inputs(encoded, range(8)) for made in (small, teacher)]
    with torch.no_grad():
        mine, theirs = (
            made.model(**given, output_hidden_states=True).hidden_states
            for made, given in zip((small, teacher), inputs, strict=True)
        )
    mask = inputs[0]["attention_mask"].bool()
    for one, other in zip(mine, theirs, strict=True):
        assert torch.allclose(one[mask], other[mask], atol=1e-4)


@pytest.mark.parametrize("architecture", FACTORIZED)
def test_a_factorised_student_loads_and_runs(tmp_path: Path, architecture: Architecture) -> None:
    stage = BuildStudent(layers=2, hidden_size=16, heads=2, vocabulary=80, embedding_size=6)
    student = built(tmp_path, classifier(architecture), stage)
    assert student.model.config.model_type == "deberta-v2"
    assert student.model.get_input_embeddings().embedding_dim == 6 == student.figures["embedding_size"]
    assert np.isfinite(student.logits(student.encode(TEXTS))).all()


def test_the_graph_of_a_factorised_student_says_what_torch_says(tmp_path: Path) -> None:
    teacher = classifier("bert", PAIR)
    small = Classifier(factorize(teacher.model, 16), teacher.tokenizer, PAIR, MAX_LENGTH)
    export(small, tmp_path / "model.onnx")
    texts = [*examples_of(PAIR, 20).texts, ("", "")]
    assert largest_difference(small, tmp_path / "model.onnx", texts) < 1e-4


def test_truncated_tables_are_the_best_of_their_rank() -> None:
    table = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    (narrow,), back = truncated((table,), 5)
    values = torch.linalg.svdvals(table)
    assert torch.isclose((table - narrow @ back.T).square().sum(), values[5:].square().sum(), rtol=1e-4)


@pytest.mark.parametrize("architecture", ["mpnet", "megatron-bert"])
def test_a_family_that_is_no_deberta_is_not_factorised(architecture: Architecture) -> None:
    with pytest.raises(TeacherError, match="cannot have factorised embeddings; set embedding_size: null"):
        factorize(classifier(architecture).model, 8)


def test_a_factorised_teacher_is_not_factorised_again() -> None:
    with pytest.raises(RecipeError, match="are factorised already, with 16 columns"):
        factorize(classifier("albert").model, 8)


def test_text_without_a_size_is_refused() -> None:
    with pytest.raises(RecipeError, match="vocabulary_from=text needs a size"):
        BuildStudent(vocabulary=None, vocabulary_from="text")


def test_a_student_starts_from_another_model(tmp_path: Path) -> None:
    """The start's tokenizer, its layers, and a head that says what the teacher says, as far as it can."""
    teacher, start = classifier("mpnet", layers=4), classifier("bert", layers=3, seed=5)
    student = built(tmp_path, teacher, BuildStudent(layers=2, vocabulary=10_000), start)
    assert student.model.config.model_type == "bert"
    assert student.figures["teacher_layers"] == [1, 3]
    assert student.tokenizer.encode("quiet film").tokens == start.tokenizer.encode("quiet film").tokens
    layer = student.model.bert.encoder.layer[0].attention.self.query.weight
    assert torch.equal(layer, start.model.bert.encoder.layer[0].attention.self.query.weight)
    texts = examples_of(SINGLE, 120, seed=0).texts
    wanted = teacher.logits(teacher.encode(texts))
    got = student.logits(student.encode(texts))
    blind = np.square(wanted - wanted.mean(axis=0)).mean()
    assert np.square(got - wanted).mean() < 0.8 * blind


def test_a_start_with_a_shape_of_its_own(tmp_path: Path) -> None:
    stage = BuildStudent(layers=2, hidden_size=16, heads=2, intermediate_size=20, vocabulary=80)
    student = built(tmp_path, classifier("bert"), stage, classifier("distilbert", seed=5))
    assert student.model.config.hidden_size == 16
    assert np.isfinite(student.logits(student.encode(TEXTS))).all()


def test_layers_of_another_depth_are_spread() -> None:
    assert even_layers(6, 12) == [1, 3, 5, 7, 9, 11]
    assert even_layers(3, 12) == [3, 7, 11]
    assert even_layers(6, 3) == [0, 0, 1, 1, 1, 2]
    assert even_layers(4, 4) == [0, 1, 2, 3]
