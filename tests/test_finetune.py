from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pocketlm.artifact import Artifact
from pocketlm.data.examples import Examples, load_split
from pocketlm.errors import RecipeError, TeacherError
from pocketlm.finetune import (
    FineTune,
    check_teacher,
    fitting_head,
    head_factors,
    reordered,
    valid_score,
)
from pocketlm.models.load import Classifier, output_layer
from pocketlm.stage import Context
from pocketlm.tasks.task import Task
from tests.tiny import NO_DEADLINE
from tests.tiny_models import (
    ARCHITECTURES,
    MANY,
    MAX_LENGTH,
    ON_WORDS,
    PAIR,
    QUESTION,
    SINGLE,
    VALUE,
    Architecture,
    classifier,
    examples_of,
    prepared,
)

names = st.lists(st.text("abcXYZ éß", min_size=1, max_size=6), min_size=2, max_size=6, unique_by=str.casefold)


@given(labels=names, data=st.data())
@NO_DEADLINE
def test_a_heads_names_are_found_in_any_order_and_case(labels: list[str], data: st.DataObject) -> None:
    head = data.draw(st.permutations(labels))
    cased = [data.draw(st.sampled_from([name, name.upper(), name.swapcase()])) for name in head]
    order = fitting_head(cased, Task("classification", False, tuple(labels)), "auto")
    assert order is not None
    assert [cased[index].casefold() for index in order] == [label.casefold() for label in labels]
    assert sorted(order) == list(range(len(labels)))


def test_names_that_differ_only_in_case_are_told_apart() -> None:
    task = Task("classification", False, ("US", "us"))
    assert fitting_head(("us", "US"), task, "auto") == (1, 0)
    assert fitting_head(("US", "us"), task, "auto") == (0, 1)
    with pytest.raises(TeacherError, match="the teacher's labels are Us, uS, but the data's are US, us"):
        fitting_head(("Us", "uS"), task, "auto")


@pytest.mark.parametrize(
    ("head", "labels", "order"),
    [
        (("NEGATIVE", "POSITIVE"), ("negative", "positive"), (0, 1)),
        (("POSITIVE", "NEGATIVE"), ("negative", "positive"), (1, 0)),
        (("LABEL_0", "LABEL_1"), ("negative", "positive"), (0, 1)),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("-1", "0", "1"), (0, 1, 2)),
        (("negative", "positive"), ("0", "1"), (0, 1)),
        (("b", "a", "c"), ("0", "1", "2"), (0, 1, 2)),
        # The numbers of the data may be the very names of the head, in another order.
        (("1", "0"), ("0", "1"), (1, 0)),
        (("LABEL_1", "LABEL_0"), ("LABEL_0", "LABEL_1"), (1, 0)),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "never"])
def test_a_fitting_head(
    head: tuple[str, ...], labels: tuple[str, ...], order: tuple[int, ...], mode: str
) -> None:
    assert fitting_head(head, Task("classification", False, labels), mode) == order


def test_a_regressions_head_needs_no_name() -> None:
    assert fitting_head(("LABEL_0",), VALUE, "auto") == (0,)
    assert fitting_head(("score",), VALUE, "never") == (0,)


@pytest.mark.parametrize("head", [None, ("LABEL_0", "LABEL_1"), ("a", "b", "c")])
def test_a_new_head_is_trained_when_asked_for(head: tuple[str, ...] | None) -> None:
    assert fitting_head(head, SINGLE, "always") is None
    assert fitting_head(None, SINGLE, "auto") is None


@pytest.mark.parametrize(
    ("head", "task", "mode", "message"),
    [
        (
            None, SINGLE, "never",
            "the teacher has no classification head, and fine-tuning is switched off; use mode: auto",
        ),
        (
            ("a", "b"), SINGLE, "auto",
            "the teacher's head has 2 outputs (a, b), but the task has 3 (rotten, fresh, neither); give "
            "data of the teacher's own labels, or train a new head with --fine-tune always",
        ),
        (
            ("a", "b"), VALUE, "auto",
            "the teacher's head has 2 outputs (a, b), but the task has 1 (one number); give data",
        ),
        (
            ("joy", "anger"), PAIR, "auto",
            "the teacher's labels are joy, anger, but the data's are no, yes; give data of the teacher's own "
            "labels, or train a new head with --fine-tune always",
        ),
        (
            tuple(f"n{i}" for i in range(20)), PAIR, "auto",
            "has 20 outputs (n0, n1, n2, n3, n4, n5, n6, n7, … (20 in all)), but the task has 2 (no, yes)",
        ),
        (("LABEL_1", "LABEL_0"), PAIR, "auto", "the teacher's labels are LABEL_1, LABEL_0, but"),
        (("no", "yes"), Task("classification", True, ("1", "0")), "auto", "but the data's are 1, 0"),
    ],
)  # fmt: skip
def test_a_head_that_does_not_fit(head: tuple[str, ...] | None, task: Task, mode: str, message: str) -> None:
    with pytest.raises(TeacherError) as error:
        fitting_head(head, task, mode)
    assert message in str(error.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(order=st.permutations(range(3)))
@NO_DEADLINE
def test_reordered_outputs_are_the_old_ones_in_order(architecture: Architecture, order: list[int]) -> None:
    made = classifier(architecture, layers=1)
    encoded = made.encode(examples_of(SINGLE, 4).texts)
    before = made.logits(encoded)
    assert np.allclose(reordered(made, order).logits(encoded), before[:, order], atol=1e-6)


def right_teacher(wrong: int = 0) -> tuple[Classifier, Examples]:
    """A teacher and texts that it labels right, but for `wrong` of them."""
    teacher = classifier()
    examples = examples_of(SINGLE, 60)
    said = teacher.logits(teacher.encode(examples.texts))
    with torch.no_grad():  # as many of each label as can be
        output_layer(teacher.model).bias -= torch.from_numpy(np.median(said, axis=0))
    labels = teacher.logits(teacher.encode(examples.texts)).argmax(axis=1)
    assert np.bincount(labels, minlength=3).min() >= 8
    labels[:wrong] = (labels[:wrong] + 1) % 3
    return teacher, Examples(examples.texts, labels.tolist())


def checked(teacher: Classifier, valid: Examples) -> None:
    check_teacher(teacher, valid, valid_score(teacher, teacher.encode(valid.texts), valid))


def test_a_good_teacher_passes() -> None:
    checked(*right_teacher())
    checked(*right_teacher(wrong=15))


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("wrong", [0, 6])
def test_swapped_labels_are_named(order: tuple[int, ...], wrong: int) -> None:
    teacher, valid = right_teacher(wrong)
    truth = np.asarray(valid.labels)
    swapped = reordered(teacher, order)
    with pytest.raises(TeacherError) as error:
        checked(swapped, valid)
    message = str(error.value)
    # Output i of the swapped teacher is what output order[i] was.
    meant = ", ".join(SINGLE.labels[label] for label in order)
    assert f"if its outputs meant {meant}; name the teacher's labels in that order in id2label" in message
    assert f"but {(60 - wrong) / 60:.1%} if" in message
    predicted = swapped.logits(swapped.encode(valid.texts)).argmax(axis=1)
    assert f"accuracy on valid is {(predicted == truth).mean():.1%}" in message
    # The mend works: outputs that mean what the message says fit and pass.
    named = [SINGLE.labels[label] for label in order]
    mended = fitting_head(named, SINGLE, "auto")
    assert mended is not None
    checked(reordered(swapped, mended), valid)


@pytest.mark.parametrize("theirs", [("fresh", "rotten", "neither"), ("neither", "rotten", "fresh")])
def test_the_named_order_put_into_the_teachers_config_mends_it(
    tmp_path: Path, theirs: tuple[str, ...]
) -> None:
    """Also where the teacher's own outputs stand in another order than the data's labels."""
    teacher, valid = right_teacher(wrong=6)
    # Output i says what label i of the data is, but the teacher's config gives it another name.
    task = Task("classification", False, theirs)
    Classifier(teacher.model, teacher.tokenizer, task, MAX_LENGTH).save(tmp_path / "source")
    artifact = prepared(tmp_path, SINGLE).with_part("teacher_source", tmp_path / "source")
    valid.save(artifact.parts["data"] / "valid.jsonl")
    context = Context(tmp_path / "stage", tmp_path / "stage")
    with pytest.raises(TeacherError, match="the teacher's labels are in another order") as error:
        FineTune(max_length=MAX_LENGTH)(artifact, context)
    named = str(error.value).split("if its outputs meant ")[1].split(";")[0].split(", ")
    assert tuple(named) == SINGLE.labels
    config = json.loads((tmp_path / "source" / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {str(index): name for index, name in enumerate(named)}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mended = FineTune(max_length=MAX_LENGTH)(artifact, context)
    assert mended.figures["teacher"]["valid_score"] == pytest.approx(54 / 60)


def test_a_head_trained_just_now_cannot_have_swapped_labels() -> None:
    teacher, valid = right_teacher()
    swapped = reordered(teacher, (1, 2, 0))
    with pytest.raises(TeacherError, match="there is nothing to distil"):
        check_teacher(swapped, valid, reached=0.0, trained=True)


def test_a_teacher_that_only_knows_the_commonest_label_is_refused() -> None:
    teacher = classifier()
    with torch.no_grad():
        output_layer(teacher.model).bias += torch.tensor([0.0, 1000.0, 0.0])
    texts = examples_of(SINGLE, 20).texts
    valid = Examples(texts, [1] * 12 + [0] * 8)
    with pytest.raises(TeacherError) as error:
        checked(teacher, valid)
    assert str(error.value).startswith(
        "the teacher is right on 60.0% of valid, and always answering 'fresh' on 60.0%: "
        "there is nothing to distil"
    )


def test_a_teacher_without_correlation_is_refused() -> None:
    teacher = classifier(task=VALUE)
    texts = examples_of(VALUE, 20).texts
    said = teacher.logits(teacher.encode(texts))[:, 0]
    checked(teacher, Examples(texts, said.tolist()))
    with pytest.raises(
        TeacherError, match=r"do not correlate with the labels of valid \(Pearson -1\.000\); check"
    ):
        checked(teacher, Examples(texts, (-said).tolist()))
    with pytest.raises(TeacherError, match=r"Pearson 0\.000"):
        check_teacher(teacher, Examples(texts, said.tolist()), 0.0)


def teacher_folder(folder: Path, task: Task = SINGLE, head: bool = False) -> Path:
    """A pre-trained encoder as it comes, or with a head for `task`."""
    made = classifier(task=task, layers=2, hidden_dropout_prob=0.1)
    if head:
        made.save(folder)
    else:
        made.model.base_model.save_pretrained(folder)
        made.tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def fine_tuned(folder: Path, stage: FineTune, task: Task, source: Path, train: int = 96) -> Artifact:
    artifact = prepared(folder, task, train=train, valid=30).with_part("teacher_source", source)
    return stage(artifact, Context(folder / "stage", folder / "stage"))


STAGE = FineTune(
    epochs=6, learning_rate=5e-3, head_rate=1.0, batch_size=16, max_length=MAX_LENGTH, precision="fp32"
)


@pytest.mark.parametrize("task", [SINGLE, PAIR, VALUE], ids=["single", "pair", "value"])
def test_an_encoder_becomes_a_teacher(tmp_path: Path, task: Task) -> None:
    source = teacher_folder(tmp_path / "source")
    artifact = fine_tuned(tmp_path, STAGE, task, source)
    figures = artifact.figures["teacher"]
    assert figures["trained"] and len(figures["curve"]) == 6
    assert figures["valid_score"] == pytest.approx(max(point["valid_score"] for point in figures["curve"]))
    assert figures["valid_score"] > 0.8
    assert artifact.figures["max_length"] == MAX_LENGTH
    teacher = Classifier.load(artifact.parts["teacher"], task, MAX_LENGTH)
    valid = examples_of(task, 30, seed=1)
    encoded = teacher.encode(valid.texts)
    assert valid_score(teacher, encoded, valid) == pytest.approx(figures["valid_score"])
    if task.kind == "regression":  # labels of 50, 100 and 150: in their own units
        assert np.abs(teacher.logits(encoded)[:, 0] - valid.labels).mean() < 25
    assert list((tmp_path / "stage").iterdir()) == [tmp_path / "stage" / "teacher"]


@pytest.mark.parametrize("frozen", [True, False])
def test_word_embeddings_stay_where_they_are_frozen(tmp_path: Path, frozen: bool) -> None:
    source = teacher_folder(tmp_path / "source")
    stage = FineTune(**{**vars(STAGE), "epochs": 2, "freeze_embeddings": frozen})
    artifact = fine_tuned(tmp_path, stage, SINGLE, source)
    teacher = Classifier.load(artifact.parts["teacher"], SINGLE, MAX_LENGTH)
    before = classifier(layers=2).model.get_input_embeddings().weight
    assert torch.equal(teacher.model.get_input_embeddings().weight, before) == frozen


def test_a_fitting_teacher_is_taken_as_it_is(tmp_path: Path) -> None:
    source = teacher_folder(tmp_path / "source")
    trained = fine_tuned(tmp_path / "first", STAGE, SINGLE, source)
    # The same teacher with its labels in another order, as another project may have trained it.
    theirs = Classifier.load(trained.parts["teacher"], SINGLE, MAX_LENGTH)
    logits = theirs.logits(theirs.encode(examples_of(SINGLE, 6).texts))
    other = Task("classification", False, ("Neither", "ROTTEN", "fresh"))
    Classifier(reordered(theirs, (2, 0, 1)).model, theirs.tokenizer, other, MAX_LENGTH).save(
        tmp_path / "theirs"
    )
    artifact = fine_tuned(tmp_path / "second", STAGE, SINGLE, tmp_path / "theirs")
    assert artifact.figures["teacher"] == {
        "valid_score": trained.figures["teacher"]["valid_score"], "trained": False, "curve": [],
    }  # fmt: skip
    taken = Classifier.load(artifact.parts["teacher"], SINGLE, MAX_LENGTH)
    assert np.allclose(taken.logits(taken.encode(examples_of(SINGLE, 6).texts)), logits, atol=1e-5)


def test_a_teacher_that_cannot_teach_is_refused_by_the_stage(tmp_path: Path) -> None:
    made = classifier(task=SINGLE, layers=2)
    with torch.no_grad():
        output_layer(made.model).bias += torch.tensor([1000.0, 0.0, 0.0])
    made.save(tmp_path / "source")
    with pytest.raises(TeacherError, match=r"the teacher is right on 33\.3% of valid, and always answering"):
        fine_tuned(tmp_path, FineTune(mode="never", max_length=MAX_LENGTH), SINGLE, tmp_path / "source")
    assert not (tmp_path / "stage" / "teacher").exists()


def test_an_encoder_is_refused_where_nothing_may_be_trained(tmp_path: Path) -> None:
    source = teacher_folder(tmp_path / "source")
    with pytest.raises(
        TeacherError, match="the teacher has no classification head, and fine-tuning is switched"
    ):
        fine_tuned(tmp_path, FineTune(mode="never", max_length=MAX_LENGTH), SINGLE, source)


def test_always_trains_a_new_head(tmp_path: Path) -> None:
    source = teacher_folder(tmp_path / "source", task=PAIR, head=True)
    stage = FineTune(**{**vars(STAGE), "mode": "always"})
    assert fine_tuned(tmp_path, stage, SINGLE, source).figures["teacher"]["trained"]


def test_tags_get_more_steps_than_labels_unless_told() -> None:
    labels, tags = (FineTune().settings(words=words) for words in (False, True))
    assert tags.epochs > labels.epochs and tags.learning_rate > labels.learning_rate
    told = FineTune(epochs=1, learning_rate=1e-5, batch_size=7)
    assert told.settings(words=True) == told.settings(words=False)
    assert (told.settings(words=True).epochs, told.settings(words=True).batch_size) == (1, 7)
    assert FineTune(epochs=2).settings(words=True).learning_rate == tags.learning_rate
    for broken in ({"epochs": 0}, {"learning_rate": 0.0}):
        with pytest.raises(RecipeError, match="must be above 0"):
            FineTune(**broken)


def test_a_rate_for_the_head_must_be_above_0() -> None:
    with pytest.raises(RecipeError, match=r"head_rate=0\.0 is out of range"):
        FineTune(head_rate=0.0)


def test_the_head_alone_has_the_rate_of_a_head() -> None:
    model = classifier(task=SINGLE, layers=2).model
    factors = head_factors(model, 7.0)
    assert {name for name, one in model.named_parameters() if one in factors} == {
        "classifier.weight", "classifier.bias"
    }  # fmt: skip
    assert {*factors.values()} == {7.0}


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    source = teacher_folder(tmp_path / "source")
    ends = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)
        stage = FineTune(**{**vars(STAGE), "seed": seed, "dropout": 0.1})
        artifact = fine_tuned(tmp_path / place, stage, SINGLE, source)
        teacher = Classifier.load(artifact.parts["teacher"], SINGLE, MAX_LENGTH)
        ends.append(copy.deepcopy(output_layer(teacher.model).weight))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


# Several labels, words and answers


@pytest.mark.parametrize("task", [MANY, *ON_WORDS], ids=lambda task: task.kind)
def test_every_task_is_learned(tmp_path: Path, task: Task) -> None:
    source = teacher_folder(tmp_path / "source")
    stage = FineTune(
        epochs=8, learning_rate=3e-3, head_rate=1.0, batch_size=8, max_length=48, precision="fp32",
        freeze_embeddings=False,
    )  # fmt: skip
    done = fine_tuned(tmp_path, stage, task, source)
    figures = done.figures["teacher"]
    assert figures["trained"] and figures["valid_score"] > 0.5
    teacher = Classifier.load(done.parts["teacher"], task, 48)
    valid = load_split(done.parts["data"], "valid")
    assert valid_score(teacher, teacher.encode(valid.texts), valid) == pytest.approx(figures["valid_score"])
    # Its head fits, so it is taken as it is.
    again = fine_tuned(tmp_path / "again", FineTune(mode="never", max_length=48), task, done.parts["teacher"])
    assert not again.figures["teacher"]["trained"]
    assert again.figures["teacher"]["valid_score"] == pytest.approx(figures["valid_score"])


def test_rows_that_are_cut_are_counted(tmp_path: Path) -> None:
    source = teacher_folder(tmp_path / "source")
    stage = FineTune(
        epochs=10, learning_rate=3e-3, head_rate=1.0, batch_size=8, max_length=14, precision="fp32"
    )
    done = fine_tuned(tmp_path, stage, QUESTION, source)
    examples = load_split(done.parts["data"], "train")
    encoded = Classifier.load(done.parts["teacher"], QUESTION, 14).encode(examples.texts)
    cut = [own[label["start"]] == -1 for own, label in zip(encoded.words, examples.labels, strict=True)]
    assert done.figures["teacher"]["cut_off"] == sum(cut) > 0


def test_a_teacher_of_words_that_says_nothing_right_is_refused() -> None:
    for task in ON_WORDS:
        with pytest.raises(
            TeacherError, match=r"on valid is 0\.0%, and one answer to everything gets .* train it longer"
        ):
            check_teacher(classifier(task=task), examples_of(task, 9), 0.0)
    every = Examples([("a",)] * 4, [[0, 1], [0], [0, 2], [0]])
    with pytest.raises(
        TeacherError, match=r"micro_f1 on valid is 80\.0%, and one answer to everything gets 80\.0%"
    ):
        check_teacher(classifier(task=MANY), every, 0.8)


def test_low_ranks_are_merged_and_the_embeddings_stay(tmp_path: Path) -> None:
    source = teacher_folder(tmp_path / "source")
    stage = FineTune(epochs=8, learning_rate=1e-2, batch_size=8, precision="fp32", lora_rank=4)
    done = fine_tuned(tmp_path, stage, SINGLE, source)
    assert done.figures["teacher"]["valid_score"] > 0.8
    before, after = (
        load_file(source / "model.safetensors"),
        load_file(done.parts["teacher"] / "model.safetensors"),
    )
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[f"bert.{name}"])}
    assert any(name.startswith("encoder.layer.") for name in changed)
    assert all(name.endswith("weight") for name in changed if not name.startswith("pooler."))
    assert not any(name.startswith("embeddings.") for name in changed)
    assert not any("parametrizations" in name for name in after)
    with pytest.raises(RecipeError, match="lora_rank=0 is out of range; allowed: 1 or more, or null"):
        FineTune(lora_rank=0)
