from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_pool
from pocketlm.distill.layers import Distill
from pocketlm.distill.losses import relation_kl
from pocketlm.distill.online import Online
from pocketlm.distill.pairs import pair_of
from pocketlm.distill.relations import Relations, relation_loss
from pocketlm.distill.states import attention_of, relations
from pocketlm.errors import RecipeError
from pocketlm.models.load import Classifier
from pocketlm.stage import Context
from tests.easy import exact_outputs
from tests.tiny_models import ARCHITECTURES, MAX_LENGTH, SINGLE, Architecture, classifier, prepared

FAST = Relations(epochs=6, learning_rate=3e-3, batch_size=8, precision="fp32", warmup=0.0)


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder)


def ready(folder: Path, teacher: Architecture = "bert") -> Artifact:
    """A student of another width, depth and number of heads than the teacher."""
    classifier(teacher, layers=4).save(folder / "teacher")
    classifier(layers=2, seed=3, hidden_size=24, num_attention_heads=3).save(folder / "student")
    artifact = prepared(folder, SINGLE).with_figures(shape={"layers": 2})
    for name in ("teacher", "student"):
        artifact = artifact.with_part(name, folder / name)
    return artifact.with_part("teacher_source", folder / "teacher")


@pytest.mark.parametrize("teacher", ARCHITECTURES)
def test_a_student_of_another_shape_learns_relations(tmp_path: Path, teacher: Architecture) -> None:
    artifact = ready(tmp_path, teacher)
    done = FAST(artifact, context(tmp_path / "relations"))
    figures = done.figures["relations"]
    losses = [point["train_loss"] for point in figures["curve"]]
    assert losses[-1] < 0.9 * losses[0]
    assert figures["relation_heads"] == 8 and figures["texts"] == 24
    # The task follows.
    done = exact_outputs(states=())(done, context(tmp_path / "outputs"))
    stage = Distill(hidden=0.0, epochs=1, precision="fp32")
    assert stage(done, context(tmp_path / "distil")).parts["student"].is_dir()


def test_the_loss_is_equation_4_by_hand(tmp_path: Path) -> None:
    artifact = ready(tmp_path)
    student, teacher = (
        Classifier.load(artifact.parts[name], SINGLE, MAX_LENGTH) for name in ("student", "teacher")
    )
    texts = load_pool(artifact).texts
    own, theirs = student.encode(texts), teacher.encode(texts)
    pair = pair_of(student.model, teacher.model, 1, 2)
    weights = (1.0, 0.5, 2.0)
    loss = relation_loss(student, own, Online(teacher, theirs, own), pair, 4, weights)
    with torch.no_grad():
        found = loss(student.model, range(6))
        for row in range(6):
            ours = student.model.base_model(**student.inputs(own, [row]), output_hidden_states=True)
            wanted = teacher.model.base_model(**teacher.inputs(theirs, [row]), output_hidden_states=True)
            both = zip(
                relations(attention_of(student.model, 1), ours.hidden_states[1]),
                relations(attention_of(teacher.model, 2), wanted.hidden_states[2]),
                strict=True,
            )
            mask = torch.ones(1, own.lengths[row], dtype=torch.bool)
            by_hand = sum(
                weight * float(relation_kl(mine, other, mask, 4))
                for weight, (mine, other) in zip(weights, both, strict=True)
            )
            # Texts of other lengths in the batch change nothing.
            assert float(found[row]) == pytest.approx(by_hand, rel=1e-4)


def test_the_last_layer_alone_is_told_anything(tmp_path: Path) -> None:
    """Whose FFN, behind the relations, nothing is learnt of; what is before it all learns."""
    artifact = ready(tmp_path)
    done = replace(FAST, epochs=1)(artifact, context(tmp_path / "relations"))
    before, after = (
        Classifier.load(one.parts["student"], SINGLE, MAX_LENGTH).model.state_dict()
        for one in (artifact, done)
    )
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert "bert.encoder.layer.1.intermediate.dense.weight" in same and "classifier.weight" in same
    assert (
        not {
            "bert.encoder.layer.0.intermediate.dense.weight",
            "bert.encoder.layer.1.attention.self.value.weight",
        }
        & same
    )


def test_a_layer_of_the_teacher_may_be_chosen(tmp_path: Path) -> None:
    artifact = ready(tmp_path)
    last, same, other = (
        replace(FAST, epochs=1, teacher_layer=layer)(artifact, context(tmp_path / str(layer))).figures[
            "relations"
        ]
        for layer in (None, 3, 1)
    )
    assert last == same != other


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"teacher_layer": 4}, "teacher_layer=4 is out of range; the teacher's layers are 0 to 3"),
        ({"relation_heads": 5}, "relation_heads=5 does not divide the widths 24 of the student and 32"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError) as error:
        replace(FAST, **fields)(ready(tmp_path), context(tmp_path / "relations"))
    assert told in str(error.value)


@pytest.mark.parametrize("weights", [{"queries": -1.0}, dict.fromkeys(("queries", "keys", "values"), 0.0)])
def test_weights_out_of_range_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="weights must be 0 or more, one of them above 0"):
        Relations(**weights)
