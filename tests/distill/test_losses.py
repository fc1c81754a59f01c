from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pocketlm.distill.losses import (
    attention_mse,
    cosine,
    hidden_mse,
    logit_bernoulli_kl,
    logit_distance,
    logit_kl,
    logit_mse,
    relation_kl,
    state_mse,
)
from tests.tiny import NO_DEADLINE

seeds = st.integers(0, 10_000)
temperatures = st.floats(0.2, 10)
scales = st.sampled_from([1e-3, 1.0, 30.0])


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_mask(seed: int, *shape: int) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask[:, 0] = True
    return mask


LOGIT_LOSSES: list[Callable[[Tensor, Tensor], Tensor]] = [
    logit_mse, logit_kl, lambda student, teacher: logit_kl(student, teacher, 4.0)
]  # fmt: skip


@pytest.mark.parametrize("loss", LOGIT_LOSSES)
@given(seed=seeds, scale=scales)
@NO_DEADLINE
def test_a_logit_loss_is_0_where_both_agree_and_else_above(
    loss: Callable[[Tensor, Tensor], Tensor], seed: int, scale: float
) -> None:
    student, teacher = scale * randn(seed, 5, 3), scale * randn(seed + 1, 5, 3)
    assert loss(teacher, teacher).abs().max() < 1e-12
    assert loss(student, teacher).shape == (5,)
    # Of two sides that are sure of the same label, rounding leaves nothing.
    assert loss(student, teacher).min() > (-1e-12 if scale > 1 else 0)


@pytest.mark.parametrize("loss", LOGIT_LOSSES)
@given(seed=seeds)
@NO_DEADLINE
def test_every_example_has_a_logit_loss_of_its_own(
    loss: Callable[[Tensor, Tensor], Tensor], seed: int
) -> None:
    student, teacher = randn(seed, 4, 3), randn(seed + 1, 4, 3)
    together = loss(student, teacher)
    for row in range(4):
        assert together[row] == pytest.approx(float(loss(student[row : row + 1], teacher[row : row + 1])))


@pytest.mark.parametrize("loss", LOGIT_LOSSES)
def test_a_logit_losss_gradient_is_right(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    teacher = randn(1, 4, 3)
    assert torch.autograd.gradcheck(lambda student: loss(student, teacher), randn(0, 4, 3).requires_grad_())


@given(seed=seeds, temperature=temperatures, scale=scales)
@NO_DEADLINE
def test_kl_is_torchs_times_the_temperature_squared(seed: int, temperature: float, scale: float) -> None:
    student, teacher = scale * randn(seed, 5, 4), scale * randn(seed + 1, 5, 4)
    reference = F.kl_div(
        F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1), reduction="none"
    ).sum(-1)
    assert torch.allclose(logit_kl(student, teacher, temperature), reference * temperature**2, atol=1e-10)


@given(seed=seeds, temperature=temperatures, shift=st.floats(-50, 50))
@NO_DEADLINE
def test_kl_knows_probabilities_only(seed: int, temperature: float, shift: float) -> None:
    student, teacher = randn(seed, 5, 4), randn(seed + 1, 5, 4)
    moved = logit_kl(student + shift, teacher - shift, temperature)
    assert torch.allclose(moved, logit_kl(student, teacher, temperature), atol=1e-8)


def test_kl_of_a_hot_temperature_is_half_the_mse_of_centred_logits() -> None:
    """Hinton et al. 2015, section 2.1: matching logits is the limit of a high temperature."""
    student, teacher = randn(0, 6, 3), randn(1, 6, 3)
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (student, teacher)]
    assert torch.allclose(logit_kl(student, teacher, 1e4), logit_mse(*centred) / 2, rtol=1e-3)


def test_kl_is_not_symmetric_and_weighs_by_the_teacher() -> None:
    sure, unsure = torch.tensor([[20.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    # Student unsure where the teacher is sure: ln 2. The other way round: 20 / 2 - ln 2.
    assert logit_kl(unsure, sure).item() == pytest.approx(0.6931, abs=1e-3)
    assert logit_kl(sure, unsure).item() == pytest.approx(10 - 0.6931, abs=1e-3)


def test_kl_stays_finite_for_large_logits() -> None:
    student = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = logit_kl(student, torch.tensor([[-1e4, 1e4]]))
    loss.sum().backward()
    assert loss.isfinite().all() and student.grad is not None and student.grad.isfinite().all()


def test_logit_mse_by_hand() -> None:
    assert logit_mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).tolist() == [2.5]


@given(seed=seeds, scale=st.sampled_from([0.5, 1.0, 30.0]))
@NO_DEADLINE
def test_a_hidden_loss_is_0_where_both_agree_and_else_above(seed: int, scale: float) -> None:
    student, teacher = scale * randn(seed, 3, 5, 4), scale * randn(seed + 1, 3, 5, 4)
    mask = a_mask(seed, 3, 5)
    assert torch.equal(hidden_mse(teacher, teacher, mask), torch.zeros(3, dtype=torch.float64))
    assert hidden_mse(student, teacher, mask).min() > 0
    assert hidden_mse(torch.zeros_like(teacher), teacher, mask).tolist() == pytest.approx([1, 1, 1])


@given(seed=seeds, factor=st.floats(0.5, 100))
@NO_DEADLINE
def test_a_hidden_loss_is_free_of_scale(seed: int, factor: float) -> None:
    student, teacher, mask = randn(seed, 3, 5, 4), randn(seed + 1, 3, 5, 4), a_mask(seed, 3, 5)
    assert torch.allclose(
        hidden_mse(factor * student, factor * teacher, mask), hidden_mse(student, teacher, mask)
    )


@given(seed=seeds, rubbish=st.sampled_from([1.0, 1e6, 1e30]), more=st.integers(0, 4))
@NO_DEADLINE
def test_padding_never_changes_a_hidden_loss(seed: int, rubbish: float, more: int) -> None:
    student, teacher, mask = randn(seed, 3, 5, 4), randn(seed + 1, 3, 5, 4), a_mask(seed, 3, 5)
    before = hidden_mse(student, teacher, mask)
    hidden = ~mask[..., None]
    other = hidden_mse(student + rubbish * hidden, teacher - rubbish * hidden, mask)
    assert torch.equal(before, other)
    longer = [F.pad(states, (0, 0, 0, more), value=rubbish) for states in (student, teacher)]
    assert torch.allclose(hidden_mse(*longer, F.pad(mask, (0, more))), before)


def test_padding_gives_no_gradient() -> None:
    student, teacher, mask = randn(0, 3, 5, 4).requires_grad_(), randn(1, 3, 5, 4), a_mask(2, 3, 5)
    hidden_mse(student, teacher, mask).sum().backward()
    assert student.grad is not None
    assert torch.equal(student.grad[~mask], torch.zeros_like(student.grad[~mask]))
    assert (student.grad[mask] != 0).all()


def test_a_hidden_losss_gradient_is_right() -> None:
    teacher, mask = randn(1, 2, 3, 4), a_mask(2, 2, 3)
    assert torch.autograd.gradcheck(
        lambda student: hidden_mse(student, teacher, mask), randn(0, 2, 3, 4).requires_grad_()
    )


def test_every_example_has_a_hidden_loss_of_its_own() -> None:
    student, teacher, mask = randn(0, 4, 5, 3), randn(1, 4, 5, 3), a_mask(2, 4, 5)
    together = hidden_mse(student, teacher, mask)
    for row in range(4):
        length = int(mask[row].nonzero().max()) + 1
        cut = (slice(row, row + 1), slice(0, length))
        assert together[row] == pytest.approx(float(hidden_mse(student[cut], teacher[cut], mask[cut])))


def test_an_example_without_any_position_costs_nothing() -> None:
    student, teacher = randn(0, 2, 3, 4).requires_grad_(), randn(1, 2, 3, 4)
    mask = torch.tensor([[False] * 3, [True] * 3])
    losses = hidden_mse(student, teacher, mask)
    assert losses[0] == 0
    losses.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()


# Terms over positions: of states [batch, length, width], or of scores [batch, heads, length, length]


MaskedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
OF_STATES: dict[str, MaskedLoss] = {
    "state_mse": state_mse,
    "cosine": cosine,
    "relation_kl": lambda student, teacher, mask: relation_kl(student, teacher, mask, 2),
}
MASKED: dict[str, MaskedLoss] = {**OF_STATES, "attention_mse": attention_mse}
masked = pytest.mark.parametrize("name", MASKED)


def two_sides(name: str, seed: int, batch: int = 3, length: int = 5) -> tuple[Tensor, Tensor]:
    shape = (batch, 2, length, length) if name == "attention_mse" else (batch, length, 4)
    return randn(seed, *shape), randn(seed + 1, *shape)


def spoilt(name: str, values: Tensor, mask: Tensor, rubbish: float) -> Tensor:
    """The same values with rubbish wherever padding is."""
    kept = mask[:, None, :, None] & mask[:, None, None, :] if name == "attention_mse" else mask[..., None]
    return torch.where(kept, values, torch.full_like(values, rubbish))


def lengthened(name: str, values: Tensor, more: int, rubbish: float) -> Tensor:
    by = (0, more, 0, more) if name == "attention_mse" else (0, 0, 0, more)
    return F.pad(values, by, value=rubbish)


@masked
@given(seed=seeds)
@NO_DEADLINE
def test_a_masked_loss_is_0_where_both_agree_and_else_above(name: str, seed: int) -> None:
    student, teacher = two_sides(name, seed)
    mask = a_mask(seed, 3, 5)
    mask[:, 1] = True
    assert MASKED[name](teacher, teacher, mask).abs().max() < 1e-12
    assert MASKED[name](student, teacher, mask).shape == (3,)
    assert MASKED[name](student, teacher, mask).min() > 0


@masked
@given(
    seed=seeds, rubbish=st.sampled_from([1.0, 1e6, 1e300, float("inf"), float("nan")]), more=st.integers(0, 3)
)
@NO_DEADLINE
def test_padding_never_changes_a_masked_loss(name: str, seed: int, rubbish: float, more: int) -> None:
    student, teacher = two_sides(name, seed)
    mask = a_mask(seed, 3, 5)
    before = MASKED[name](student, teacher, mask)
    sides = [spoilt(name, side, mask, rubbish) for side in (student, teacher)]
    assert torch.allclose(MASKED[name](*sides, mask), before, atol=1e-12)
    sides = [lengthened(name, side, more, rubbish) for side in sides]
    assert torch.allclose(MASKED[name](*sides, F.pad(mask, (0, more))), before, atol=1e-12)


@masked
def test_a_masked_losss_gradient_is_right(name: str) -> None:
    student, teacher = two_sides(name, 0, batch=2, length=3)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert torch.autograd.gradcheck(
        lambda student: MASKED[name](student, teacher, mask), student.requires_grad_()
    )


@masked
def test_padding_gives_no_gradient_of_a_masked_loss(name: str) -> None:
    student, teacher = two_sides(name, 0)
    mask = a_mask(2, 3, 5)
    student = spoilt(name, student, mask, 7.0).requires_grad_()
    MASKED[name](student, teacher, mask).sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()
    assert torch.equal(student.grad, spoilt(name, student.grad, mask, 0.0))
    assert student.grad.any()


@masked
def test_every_example_has_a_masked_loss_of_its_own(name: str) -> None:
    student, teacher = two_sides(name, 0, batch=4)
    mask = a_mask(2, 4, 5)
    together = MASKED[name](student, teacher, mask)
    for row in range(4):
        sides = [side[row : row + 1] for side in (student, teacher)]
        assert torch.allclose(together[row], MASKED[name](*sides, mask[row : row + 1])[0])


@masked
def test_an_example_without_positions_costs_nothing(name: str) -> None:
    student, teacher = two_sides(name, 0, batch=2)
    mask = torch.tensor([[False] * 5, [True] * 5])
    student.requires_grad_()
    losses = MASKED[name](student, teacher, mask)
    assert losses[0] == 0
    losses.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()


def test_state_mse_is_torchs_over_what_is_unmasked() -> None:
    student, teacher = two_sides("state_mse", 0)
    mask = a_mask(0, 3, 5)
    for row in range(3):
        wanted = F.mse_loss(student[row][mask[row]], teacher[row][mask[row]])
        assert torch.allclose(state_mse(student, teacher, mask)[row], wanted)


def test_attention_mse_is_torchs_over_the_unmasked_square() -> None:
    student, teacher = two_sides("attention_mse", 0)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True, False, True, True, False]])
    for row in range(3):
        cut = [side[row][:, mask[row]][:, :, mask[row]] for side in (student, teacher)]
        assert torch.allclose(attention_mse(student, teacher, mask)[row], F.mse_loss(*cut))


def test_relation_kl_is_the_papers_sum_by_hand() -> None:
    """MiniLMv2, eq. 5 and 6, with loops and torch's own divergence, for sides of two widths."""
    student, teacher = randn(0, 2, 5, 6), randn(1, 2, 5, 9)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    found = relation_kl(student, teacher, mask, 3)
    for row in range(2):
        total = 0.0
        for head in range(3):
            ours = student[row][mask[row]][:, head * 2 : head * 2 + 2]
            theirs = teacher[row][mask[row]][:, head * 3 : head * 3 + 3]
            mine = (ours @ ours.T / 2**0.5).log_softmax(-1)
            wanted = (theirs @ theirs.T / 3**0.5).softmax(-1)
            total += float(F.kl_div(mine, wanted, reduction="sum"))
        assert float(found[row]) == pytest.approx(total / 3 / int(mask[row].sum()))


def test_relations_do_not_feel_a_rotation() -> None:
    """Which is why they need no projection: only products within a relation head count."""
    student, teacher, mask = randn(0, 2, 5, 4), randn(1, 2, 5, 4), a_mask(2, 2, 5)
    turn = torch.linalg.qr(randn(3, 4, 4)).Q
    assert torch.allclose(relation_kl(student @ turn, student, mask, 1), torch.zeros(2).double(), atol=1e-12)
    one, two = relation_kl(student @ turn, teacher, mask, 1), relation_kl(student, teacher, mask, 1)
    assert torch.allclose(one, two)


@given(seed=seeds, factor=st.floats(0.1, 100))
@NO_DEADLINE
def test_a_cosine_knows_directions_only(seed: int, factor: float) -> None:
    student, teacher, mask = randn(seed, 3, 5, 4), randn(seed + 1, 3, 5, 4), a_mask(seed, 3, 5)
    assert torch.allclose(cosine(factor * student, teacher, mask), cosine(student, teacher, mask))
    assert torch.allclose(cosine(-teacher, teacher, mask), torch.full((3,), 2.0).double())


def test_the_distance_of_logits_that_is_asked_for() -> None:
    student, teacher = randn(0, 5, 3), randn(1, 5, 3)
    kl, mse = logit_kl(student, teacher, 3.0), logit_mse(student, teacher)
    assert torch.equal(logit_distance(student, teacher, "kl", 3.0, "classification"), kl)
    assert torch.equal(logit_distance(student, teacher, "mse", 3.0, "joint"), mse)
    assert torch.equal(logit_distance(student, teacher, "kl", 3.0, "regression"), mse)
    several = logit_bernoulli_kl(student, teacher, 3.0)
    assert torch.equal(logit_distance(student, teacher, "kl", 3.0, "multilabel"), several)
