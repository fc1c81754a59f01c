from __future__ import annotations

import pytest
import torch

from pocketlm.distill.projections import Projections, relative_distance
from pocketlm.distill.subwords import build_student, widen_vocabulary
from pocketlm.models.masked_lm import MaskedLM
from pocketlm.tokenization.learn import learn
from tests.models.test_masked_lm import masked_lm
from tests.tiny import sentences
from tests.tiny_models import BERT_LIKE

TEXTS = [(text,) for text in sentences(60)]
WORDPIECE = [name for name in BERT_LIKE if name != "roberta"]


def both(architecture="bert", width: int = 16) -> tuple[MaskedLM, MaskedLM]:
    """A student and its teacher, which knows the student's pieces."""
    teacher = masked_lm(architecture)
    tokenizer = learn(teacher.tokenizer, TEXTS, 140)
    torch.manual_seed(1)
    student = build_student(teacher, tokenizer, width, TEXTS)
    widen_vocabulary(teacher, tokenizer)
    return student, teacher


@pytest.mark.parametrize("architecture", WORDPIECE)
def test_projections_lead_from_every_shape_to_its_partners(architecture) -> None:
    student, teacher = both(architecture)
    projections = Projections(student.model, teacher.model, "both")
    pairs = projections.pairs()
    for theirs, ours in pairs:
        assert projections.down(theirs, ours.shape).shape == ours.shape
        assert projections.up(ours, theirs.shape).shape == theirs.shape
    different = sum(parameter.numel() for _, parameter in pairs)
    same = sum(p.numel() for n, p in student.model.base_model.named_parameters() if "relative" in n)
    assert different + same == sum(p.numel() for p in student.model.base_model.parameters())
    # 4 matrices for each of 2 widths, however many layers.
    assert len(list(projections.parameters())) == 8


def test_down_is_zero_where_the_student_is_the_projected_teacher() -> None:
    student, teacher = both()
    projections = Projections(student.model, teacher.model, "down")
    assert projections() > 0.1
    with torch.no_grad():
        for theirs, ours in projections.pairs():
            ours.copy_(projections.down(theirs, ours.shape))
    assert projections() < 1e-9


def test_up_is_zero_where_the_teacher_is_the_projected_student_and_one_for_a_silent_student() -> None:
    student, teacher = both()
    projections = Projections(student.model, teacher.model, "up")
    with torch.no_grad():
        for _, ours in projections.pairs():
            ours.zero_()
        torch.testing.assert_close(projections(), torch.tensor(1.0))
        for theirs, ours in projections.pairs():
            ours.normal_()
            theirs.copy_(projections.up(ours, theirs.shape))
    assert projections() < 1e-9


def test_both_is_down_and_up_and_none_is_nothing() -> None:
    student, teacher = both()
    values = {}
    for direction in ("both", "down", "up", "none"):
        torch.manual_seed(0)
        values[direction] = Projections(student.model, teacher.model, direction)().item()
    assert values["both"] == pytest.approx(values["down"] + values["up"], rel=1e-5)
    assert values["none"] == 0.0


def test_the_teacher_is_not_moved_and_the_student_and_the_maps_are() -> None:
    student, teacher = both()
    projections = Projections(student.model, teacher.model, "both")
    projections().backward()
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert all(ours.grad is not None for _, ours in projections.pairs())
    assert all(parameter.grad is not None for parameter in projections.parameters())


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    approximation = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    variable = torch.randn(3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: relative_distance(value, variable), (approximation,))
    student, teacher = both()
    projections = Projections(student.model, teacher.model, "up")
    for module in (projections, student.model, teacher.model):
        module.double()
    _, ours = projections.pairs()[5]
    projections().backward()
    for moved in (ours, projections.maps["up_U_hidden"], projections.maps["up_V_ffn"]):
        direction = torch.randn_like(moved)
        values = []
        with torch.no_grad():
            for step in (1e-4, -2e-4):
                moved.add_(direction, alpha=step)
                values.append(projections().item())
            moved.add_(direction, alpha=1e-4)
        assert (values[0] - values[1]) / 2e-4 == pytest.approx(
            (moved.grad * direction).sum().item(), rel=1e-3
        )
