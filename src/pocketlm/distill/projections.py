"""Shared variable projections: hold the variables of a narrow model to those of a wide one.

Zhao et al. 2019 (https://arxiv.org/abs/1909.11687v1), section 3.2:

    L_down = Σ ‖U θ_t V − θ_s‖²        L_up = Σ ‖θ_t − U' θ_s V'‖²

over all variables of teacher and student, the matrices U, V, U', V' learned along and shared by all layers.

Deviations: every squared distance is relative to the squared norm of what is approximated, and their mean
is taken, so that all variables count alike at any width. The losses move the student and the projections,
not the teacher. FFN neurons have projections of their own, as they are not of the hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Direction = Literal["both", "down", "up", "none"]


def relative_distance(approximation: Tensor, variable: Tensor) -> Tensor:
    """‖approximation − variable‖² / ‖variable‖², the norm taken as a constant; 0 where they agree."""
    norm = (variable.detach() ** 2).sum().clamp_min(1e-12)
    return ((approximation.to(variable.dtype) - variable) ** 2).sum() / norm


class Projections(nn.Module):
    """Matrices from the teacher's widths to the student's and back, for rows (U) and for columns (V).

    Args:
        student: Narrow.
        teacher: Of the same architecture and depth, wide; the student's pieces are the last of its own.
        direction: Which of the losses are taken.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, direction: Direction) -> None:
        super().__init__()
        narrow, wide = cast(Any, student).config, cast(Any, teacher).config
        self.direction = direction
        self.names: dict[int, str] = {wide.intermediate_size: "ffn", wide.hidden_size: "hidden"}
        self.maps = nn.ParameterDict()
        sizes = {"hidden": (wide.hidden_size, narrow.hidden_size)}
        sizes["ffn"] = (wide.intermediate_size, narrow.intermediate_size)
        for name, (size, small) in sizes.items():
            for side in ("U", "V"):
                start = torch.empty(small, size)
                nn.init.orthogonal_(start)
                self.maps[f"down_{side}_{name}"] = nn.Parameter(start)
                self.maps[f"up_{side}_{name}"] = nn.Parameter(start.T.contiguous().clone())
        self._models = (student, teacher)  # a tuple hides them: their parameters are not ours

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Every variable of the teacher with the student's of the same name, where their shapes differ."""
        student, teacher = (cast(Any, model) for model in self._models)
        mine, table = student.get_input_embeddings().weight, teacher.get_input_embeddings().weight
        theirs: dict[str, Tensor] = dict(teacher.base_model.named_parameters())
        ours: dict[str, Tensor] = dict(student.base_model.named_parameters())
        found = [
            (theirs[name], variable)
            for name, variable in ours.items()
            if variable is not mine and theirs[name].shape != variable.shape
        ]
        return [(table[-len(mine) :], mine), *found]

    def forward(self) -> Tensor:
        """L_down + L_up, each the mean over all variables: 0 where the projections explain everything."""
        pairs = self.pairs()
        total = torch.zeros(())
        for theirs, ours in pairs:
            if self.direction in ("both", "down"):
                total = total + relative_distance(self.down(theirs.detach(), ours.shape), ours)
            if self.direction in ("both", "up"):
                total = total + relative_distance(self.up(ours, theirs.shape), theirs.detach())
        return total / len(pairs)

    def down(self, variable: Tensor, shape: Sequence[int]) -> Tensor:
        """U θ_t V: a variable of the teacher in the `shape` of the student's."""
        return self._project(variable, "down", variable.shape, shape)

    def up(self, variable: Tensor, shape: Sequence[int]) -> Tensor:
        """U' θ_s V': a variable of the student in the `shape` of the teacher's."""
        return self._project(variable, "up", shape, variable.shape)

    def _project(self, variable: Tensor, way: str, wide: Sequence[int], narrow: Sequence[int]) -> Tensor:
        if wide[0] != narrow[0]:  # rows of a vocabulary or of positions are the same in both
            variable = self.maps[f"{way}_U_{self.names[wide[0]]}"] @ variable
        if len(wide) == 2 and wide[1] != narrow[1]:
            variable = variable @ self.maps[f"{way}_V_{self.names[wide[1]]}"].T
        return variable
