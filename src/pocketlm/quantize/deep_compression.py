"""Deep Compression: what is left after pruning shares few values, which are trained, and is entropy-coded.

Han, Mao and Dally 2015 (https://arxiv.org/abs/1510.00149): section 2, prune and train what is left (see
`pocketlm.prune.magnitude`); section 3, k-means over the weights of each tensor, started evenly between the
smallest and the largest, then training of the shared values by the summed gradients of their weights;
section 4, Huffman codes.

Deviations: zeros are a value like the others, where the paper stores the distances between weights that are
not zero; the values of a tensor are coded by an ANS stack (`pocketlm.runtime.coded`), which comes within a
fraction of a percent of their entropy. `huffman_bits` says what the paper's code would take of the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pocketlm.artifact import Artifact
from pocketlm.distill.layers import Distill
from pocketlm.errors import RecipeError
from pocketlm.models.load import student_of, with_student
from pocketlm.quantize.aware import LOGITS, large_layers
from pocketlm.stage import Context

MOST_VALUES = 255
"""A code is a byte, and 0 is the code of zero."""


def shared_values(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cluster the weights that are not zero (eq. 2), from values evenly over their range (section 3.2).

    Args:
        weight: Of any shape.
        count: Clusters, 1 to 255.

    Returns:
        Codes, uint8 of the weight's shape, of which 0 is zero; and the values of the codes, [count + 1].
    """
    flat = weight.detach().flatten().numpy()
    kept = flat[flat != 0]
    values = np.zeros(count + 1, dtype=np.float32)
    codes = np.zeros(len(flat), dtype=np.uint8)
    if len(kept):
        start = np.linspace(kept.min(), kept.max(), count, dtype=np.float32)[:, None]
        if len(np.unique(kept)) > count:
            means = cast(Any, KMeans)(count, init=start, n_init=1, max_iter=100)
            found = means.fit(kept[:, None])
            values[1:] = found.cluster_centers_[:, 0]
            codes[flat != 0] = 1 + found.labels_
        else:
            own, places = np.unique(kept, return_inverse=True)
            values[1 : 1 + len(own)] = own
            codes[flat != 0] = 1 + places
    return torch.from_numpy(codes).view(weight.shape), torch.from_numpy(values)


class Shared(nn.Module):
    """A weight as codes of trained values, as a parametrization of it; what is zero stays so.

    Args:
        weight: Of any shape.
        count: Values.
    """

    def __init__(self, weight: Tensor, count: int) -> None:
        super().__init__()
        codes, values = shared_values(weight, count)
        self.codes: Tensor
        self.register_buffer("codes", codes.long())
        self.values = nn.Parameter(values[1:])

    def forward(self, weight: Tensor) -> Tensor:
        """The weight's shape; the gradient of a value is the sum of its weights' (eq. 3)."""
        del weight
        return torch.cat([self.values.new_zeros(1), self.values])[self.codes]


@contextmanager
def sharing(weights: Mapping[str, tuple[nn.Module, str]], count: int) -> Generator[dict[str, Shared]]:
    """Let tensors share values while they are trained, in place.

    Args:
        weights: Module and name of its parameter, under any name.
        count: Values of each tensor.

    Yields:
        Codes and values under the same names.
    """
    found: dict[str, Shared] = {}
    for name, (module, attribute) in weights.items():
        found[name] = Shared(cast(Tensor, getattr(module, attribute)), count)
        parametrize.register_parametrization(module, attribute, found[name])
        cast(Any, module).parametrizations[attribute].original.requires_grad_(False)
    try:
        yield found
    finally:
        for module, attribute in weights.values():
            cast(Any, parametrize).remove_parametrizations(module, attribute, leave_parametrized=True)
            getattr(module, attribute).requires_grad_(True)


def huffman_bits(codes: Tensor) -> int:
    """Bits of a tensor's codes in their best prefix code (Huffman 1952), which the paper uses.

    Args:
        codes: Whole numbers from 0, of any shape.
    """
    counts = [int(count) for count in torch.bincount(codes.flatten().long()) if count]
    if len(counts) == 1:
        return counts[0]
    heapq.heapify(counts)
    total = 0
    while len(counts) > 1:
        joined = heapq.heappop(counts) + heapq.heappop(counts)
        total += joined
        heapq.heappush(counts, joined)
    return total


@dataclass(frozen=True)
class ShareWeights:
    """Let the student's weights share few values, and train these while it learns from its teacher.

    It stands behind a stage that prunes, or by itself. The graph has to compute in float32 to keep the values
    apart (`int8: {matmuls: false}`); `pack: {coded: true}` makes the file small.

    Args:
        values: Of every tensor, 1 to 255; the paper has 32 for full and 256 for convolutional layers.
        training: How they learn.
        seed: Of the batches.
    """

    values: int = 32
    training: Distill = LOGITS
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.values <= MOST_VALUES:
            raise RecipeError(f"values={self.values} is out of range; allowed: 1 to {MOST_VALUES}")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the part `student`; adds the figures `distil` and `shared` (bits in Huffman's code)."""
        student = student_of(artifact)
        training = replace(self.training, seed=self.seed)
        maps: dict[str, tuple[nn.Module, str]] = {
            name: (layer, "weight")
            for name, layer in large_layers(student.model).items()
            if isinstance(layer, nn.Linear)
        }
        with sharing(maps, self.values) as found:
            curves = training.fit(student, artifact, context, "train the shared values")
            bits = sum(huffman_bits(each.codes) for each in found.values())
        return with_student(
            artifact,
            student,
            context,
            distil=curves,
            shared={"values": self.values, "huffman_bytes": bits / 8},
        )
