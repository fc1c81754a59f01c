"""Training on what is inside of the teacher: what the stages with such a phase share.

An inner phase has no score on the task to be judged by, and its end must survive a kill, because the
phase after it starts there. Its learnt projections from the student's width to the teacher's are no
part of the student.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from accelerate import PartialState
from safetensors import safe_open
from torch import Tensor, nn

from pocketlm.data.sample import spread
from pocketlm.distill.pairs import TeacherStates
from pocketlm.distill.states import width_of
from pocketlm.models.load import EVALUATION_BATCH, Classifier
from pocketlm.stage import Context
from pocketlm.tokenization.encode import Encoded
from pocketlm.train import Loss, Point, Settings, save_tensors, train

SAMPLE = 256
# Of the mean squared feature. Normalized states lie almost in a plane, and a fit that leans on what
# sticks out of it answers the smallest step of the student with a large error.
RIDGE = 0.1


def train_inner(
    model: nn.Module,
    projections: nn.Module,
    loss: Loss,
    lengths: Sequence[int],
    settings: Settings,
    context: Context,
    description: str,
) -> list[Point]:
    """Train on an inner loss; a call after a kill finds the end of a finished phase.

    The weights kept are those of the least loss on a sample of the training texts.

    Args:
        model: The student.
        projections: Trained along.
        loss: One number an example.
        lengths: Of the training texts.
        settings: How long and how hard.
        context: Its checkpoints folder, one for all processes, keeps the result.
        description: What the bar says.

    Returns:
        The learning curve; a valid score is minus the loss on the sample.
    """
    path = context.checkpoints / "inner.safetensors"
    learner = nn.ModuleDict({"model": model, "projections": projections})
    if path.exists():
        with cast(Any, safe_open(path, framework="pt")) as file:
            learner.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            return [Point(**point) for point in json.loads(file.metadata()["curve"])]
    sample = spread(len(lengths), SAMPLE)
    curve = train(
        model,
        loss,
        lengths,
        settings,
        lambda: -mean_loss(model, loss, sample),
        context.checkpoints / "inner",
        context.progress,
        description,
        projections,
    )
    if PartialState().is_main_process:
        save_tensors(learner.state_dict(), path, curve=json.dumps([asdict(point) for point in curve]))
    return curve


def forget_inner(context: Context) -> None:
    """Remove what `train_inner` keeps for a run that is killed, once the stage's own result is saved."""
    if PartialState().is_main_process:
        (context.checkpoints / "inner.safetensors").unlink(missing_ok=True)


@torch.no_grad()
def mean_loss(model: nn.Module, loss: Loss, indices: Sequence[int]) -> float:
    """Mean of a loss over some examples, in whichever mode the model is."""
    starts = range(0, len(indices), EVALUATION_BATCH)
    return float(
        torch.cat([loss(model, indices[start : start + EVALUATION_BATCH]) for start in starts]).mean()
    )


def projections_of(student: nn.Module, count: int, width: int, seed: int) -> nn.ModuleList:
    """Linear maps from the student's width to `width`, one a state: W_h and W_e of TinyBERT, eq. 8 and 9."""
    torch.manual_seed(seed)
    return nn.ModuleList([nn.Linear(width_of(student), width, bias=False) for _ in range(count)])


@torch.no_grad()
def fit_projections(
    projections: nn.ModuleList,
    student: Classifier,
    encoded: Encoded,
    teacher: TeacherStates,
    layer_map: Sequence[int],
) -> None:
    """Start projections at the least squares fit of the teacher's states, in place.

    A random projection has to be learnt before the student gets any sensible gradient through it. The
    fit is ridge regression over some texts: W = (XᵀX + λ I)⁻¹ Xᵀ Y.

    Args:
        projections: One for every state of the student.
        student: As it is before training.
        encoded: The training texts in the student's pieces.
        teacher: Tells its states of them.
        layer_map: Teacher's state for every state of the student.
    """
    training = student.model.training
    student.model.eval()
    ours, width = width_of(student.model), teacher.width
    squares = [torch.zeros(ours, ours, dtype=torch.float64) for _ in layer_map]
    products = [torch.zeros(ours, width, dtype=torch.float64) for _ in layer_map]
    sample = spread(len(encoded), SAMPLE)
    for start in range(0, len(sample), EVALUATION_BATCH):
        rows = sample[start : start + EVALUATION_BATCH]
        states = student.model.base_model(**student.inputs(encoded, rows), output_hidden_states=True)
        said = teacher.states_of(rows, sorted({*layer_map}))
        for place, other in enumerate(layer_map):
            x = states.hidden_states[place][said.mask].double()  # [positions, student's width]
            squares[place] += x.T @ x
            products[place] += x.T @ said.values[other][said.mask].double()
    for projection, square, product in zip(projections, squares, products, strict=True):
        ridge = RIDGE * square.diagonal().mean().clamp_min(1e-12) * torch.eye(ours, dtype=torch.float64)
        solved = cast(Tensor, torch.linalg.solve(square + ridge, product))
        cast(nn.Linear, projection).weight.copy_(solved.T)
    student.model.train(training)
