"""Structured pruning: heads, neurons and whole sublayers go until the network is as fast or small as asked.

Xia et al. 2022, Structured Pruning Learns Compact and Accurate Models, CoFi
(https://arxiv.org/abs/2204.00408), section 3: gates on coarse and fine parts are learned together while the
student learns from the whole model, under a Lagrangian that pulls the expected size to a budget which
shrinks from the whole network's to the one asked for. Kurtic et al. 2023, ZipLM
(https://arxiv.org/abs/2302.04089): the budget is time measured on the machine that the network is for.

Deviations: after the gates are learned, sizes are rounded to what kernels like, and the parts that cost most
for the chance they have go one after the other, or come back, until the budget is met and used; what the
gates of the parts that stay say is multiplied into the weights. Then everything is cut away for good, and
the next stage trains what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.data.sample import spread
from pocketlm.distill.layers import Along, Distill
from pocketlm.errors import RecipeError
from pocketlm.models.families import layers_of
from pocketlm.models.load import Classifier, parameters_of, student_of, with_student
from pocketlm.models.uneven import check_even, cut_layers
from pocketlm.prune.costs import Costs, check_budget, count_bytes, load_latency
from pocketlm.prune.gates import Gates, HardConcrete, OpenGates, gated, shape_of
from pocketlm.prune.magnitude import LOGITS
from pocketlm.stage import Context
from pocketlm.supervised import label_loss, targets_of

IMPORTANCE_TEXTS = 256
LEAST = 0.1
"""What a gate says at least of a part that stays, or it would never learn again."""
ROUNDED_TO = 16
"""FFN sizes are multiples of it: kernels work on so many columns at a time."""


@dataclass(frozen=True)
class Structured:
    """Learn which heads, neurons and sublayers the student can do without, and cut them away.

    Args:
        speedup: Budget of one text of the usual length, in the runtime on this machine (see the stage
            `latency`): with weights of eight bits, that many times faster than the whole student in float32.
        max_latency_ms: The same in milliseconds; wins over `speedup`.
        max_size_mb: Budget of the weights, one byte each. At least one of the three is needed.
        learned: Learn gates; False cuts at once by importance (see `by_importance`), without any training.
        warmup: Share of the steps in which the budget shrinks to what is asked for.
        gate_rate: Learning rate of the gates and of the Lagrangian's multipliers.
        training: How the student learns meanwhile.
        seed: Of the batches and of the gates.
    """

    speedup: float | None = 4.0
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    learned: bool = True
    warmup: float = 0.5
    gate_rate: float = 0.1
    training: Distill = LOGITS
    seed: int = 0
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        given = (self.speedup, self.max_latency_ms, self.max_size_mb)
        budgets = [value for value in given if value is not None]
        if not budgets or min(budgets) <= 0:
            raise RecipeError(
                f"speedup={self.speedup}, max_latency_ms={self.max_latency_ms}, "
                f"max_size_mb={self.max_size_mb} is no budget; give at least one, above 0"
            )
        if not 0 < self.warmup < 1 or self.gate_rate <= 0:
            raise RecipeError(
                f"warmup={self.warmup}, gate_rate={self.gate_rate}: the warm-up must be between 0 and 1, the "
                "rate above 0"
            )

    @property
    def in_time(self) -> bool:
        """True where a budget is one of time, which the stage `latency` has to measure before."""
        return self.speedup is not None or self.max_latency_ms is not None

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Replaces the parts `student` and `untrained_student`; adds the figures `distil` and `structure`.

        Raises:
            RecipeError: a budget is too small for what is left without attention and FFN.
            TeacherError: the layers of this family cannot be cut one by one.
        """
        student = student_of(artifact)
        check_even(student.model)
        before, budgets = parameters_of(student.model), self.budgets(student, artifact)
        if self.learned:
            curves, (heads, neurons) = self.learn(student, artifact, context, budgets)
        else:
            curves, (heads, neurons) = {}, chosen(*by_importance(student, artifact), budgets)
        cut_layers(student.model, heads, neurons)
        untrained = Classifier.load(artifact.parts["untrained_student"], student.task, student.max_length)
        cut_layers(untrained.model, heads, neurons)
        untrained.save(context.folder / "untrained")
        structure = {
            "heads": [len(own) for own in heads],
            "neurons": [len(many) for many in neurons],
            "parameters_before": before,
        }
        figures: dict[str, object] = {"structure": structure, "parameters": parameters_of(student.model)}
        if curves:
            figures["distil"] = curves
        cut = with_student(artifact, student, context, **figures)
        return cut.with_part("untrained_student", context.folder / "untrained")

    def learn(
        self,
        student: Classifier,
        artifact: Artifact,
        context: Context,
        budgets: Sequence[tuple[Costs, float]],
    ) -> tuple[dict[str, object], tuple[list[list[int]], list[list[int]]]]:
        """Train a student with gates, in place; its learning curve, and the heads and neurons that stay."""
        training = replace(self.training, seed=self.seed)
        torch.manual_seed(self.seed)
        gates = Gates(*shape_of(student.model))
        starts = [float(costs.total(*gates.whole())) for costs, _ in budgets]
        share = 0.0

        def each_step(step: int, steps: int) -> None:
            nonlocal share
            share = min(1.0, step / (self.warmup * steps))

        def penalty() -> Tensor:
            return lagrangian(gates, budgets, starts, share)

        with gated(student.model, gates):
            rate = self.gate_rate / training.learning_rate
            # Only the end counts: before it, more is open than the budget allows.
            along = Along(each_step, 1.0, dict.fromkeys(gates.parameters(), rate), penalty)
            curves = training.fit(student, artifact, context, "prune the student", along)
            stay = chosen(*likely(gates), budgets)
            fold(student.model, gates)
        return curves, stay

    def budgets(self, student: Classifier, artifact: Artifact) -> list[tuple[Costs, float]]:
        """Tables of costs and what may be spent of each.

        Raises:
            RecipeError: a budget is too small.
        """
        found: list[tuple[Costs, float]] = []
        depth = len(layers_of(student.model))
        if self.in_time:
            costs, whole = load_latency(artifact)
            found.append((costs, self.max_latency_ms or whole / cast(float, self.speedup)))
            check_budget(*found[-1], depth, "ms")
        if self.max_size_mb is not None:
            found.append((count_bytes(student), self.max_size_mb * 1e6))
            check_budget(*found[-1], depth, "bytes")
        return found


def lagrangian(
    gates: Gates, budgets: Sequence[tuple[Costs, float]], starts: Sequence[float], share: float
) -> Tensor:
    """Σ λ₁ e + λ₂ e² over the budgets, e being what is spent too much, over the whole network's cost.

    Args:
        gates: Their expected sizes have a cost, and they hold λ₁ and λ₂.
        budgets: Tables of costs and what may be spent of each.
        starts: What the whole network costs.
        share: How far the budget has come from that to what is asked for, 0 to 1.

    Returns:
        One number; 0 where exactly the budget is spent.
    """
    total, sizes = torch.zeros(()), gates.sizes()
    for (costs, budget), start, (linear, square) in zip(budgets, starts, gates.multipliers, strict=False):
        allowed = start + share * (min(budget, start) - start)
        excess = (costs.total(*sizes) - allowed) / start
        total = total + linear * excess + square * excess**2
    return total


@dataclass
class Parts:
    """The heads or the neurons of one layer.

    Args:
        order: Those that would go first come first.
        worths: What each is worth, in that order, ascending.
        step: How many go or come at a time.
        kept: How many stay, from the end of the order.
    """

    order: list[int]
    worths: list[float]
    step: int
    kept: int

    @classmethod
    def of(cls, worths: Tensor, step: int, kept: int) -> Parts:
        """Parts by how much each is worth, [parts]; `kept` is rounded to whole steps."""
        ascending = worths.sort()
        order = cast(list[int], ascending.indices.tolist())
        rounded = min(len(order), step * round(kept / step))
        return cls(order, cast(list[float], ascending.values.tolist()), step, rounded)

    def changed(self, sign: int) -> int:
        """How many stay after one step down or up."""
        return max(0, min(len(self.order), self.kept + sign * self.step))

    def stay(self) -> list[int]:
        """Those that stay, ascending."""
        return sorted(self.order[len(self.order) - self.kept :])

    def worth(self, kept: int) -> float:
        """What the parts between the size now and another are worth together."""
        low, high = sorted((self.kept, kept))
        return sum(self.worths[len(self.order) - high : len(self.order) - low])


def chosen(
    heads: Sequence[Parts], neurons: Sequence[Parts], budgets: Sequence[tuple[Costs, float]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Heads and neurons that stay, layer by layer, so that every budget is met, and used.

    The parts that cost most for their worth go until the budgets are met, and those that cost least come back
    while there is room.
    """
    everything = [*heads, *neurons]

    def spent() -> list[float]:
        counts = [torch.tensor([float(part.kept) for part in group]) for group in (heads, neurons)]
        return [float(costs.total(counts[0], counts[1])) / budget for costs, budget in budgets]

    def price(part: Parts, sign: int) -> tuple[float, bool]:
        """Worth by cost of one step, and whether the budgets are met after it."""
        before, kept, after = spent(), part.kept, part.changed(sign)
        worth = part.worth(after)
        part.kept = after
        then = spent()
        part.kept = kept
        change = max(abs(new - old) for new, old in zip(then, before, strict=True))
        return worth / max(change, 1e-9), max(then) <= 1

    while max(spent()) > 1:
        part = min((part for part in everything if part.kept), key=lambda part: price(part, -1)[0])
        part.kept = part.changed(-1)
    while True:
        prices = [(price(part, 1), part) for part in everything if part.kept < len(part.order)]
        fitting = [(worth, part) for (worth, fits), part in prices if fits]
        if not fitting:
            break
        part = max(fitting, key=lambda pair: pair[0])[1]
        part.kept = part.changed(1)
    return [part.stay() for part in heads], [part.stay() for part in neurons]


@torch.no_grad()
def likely(gates: Gates) -> tuple[list[Parts], list[Parts]]:
    """Every head and neuron with the chance of its gate, of which those of one half or more stay at first."""
    found: list[list[Parts]] = []
    for fine, coarse, step in ((gates.heads, gates.attention, 1), (gates.neurons, gates.ffn, ROUNDED_TO)):
        chances = [
            cast(HardConcrete, each).chance() * whole
            for each, whole in zip(fine, coarse.chance(), strict=True)
        ]
        found.append([Parts.of(each, step, int((each >= 0.5).sum())) for each in chances])
    return found[0], found[1]


def by_importance(student: Classifier, artifact: Artifact) -> tuple[list[Parts], list[Parts]]:
    """Every head and neuron with its importance, of which all stay at first.

    Michel et al. 2019 (https://arxiv.org/abs/1905.10650), eq. 2: the mean of |∂L / ∂gate| over texts of
    train, scaled to length 1 in each layer; TextPruner (Yang et al. 2022, https://arxiv.org/abs/2203.15996)
    prunes heads and neurons so, without any training.
    """
    train = load_split(artifact.parts["data"], "train")
    encoded, rows = student.encode(train.texts), spread(len(train), IMPORTANCE_TEXTS)
    loss, gates = (
        label_loss(student, encoded, targets_of(train, student.task)),
        OpenGates(*shape_of(student.model)),
    )
    sums = [torch.zeros_like(each) for each in gates.parameters()]
    student.model.eval()
    with gated(student.model, gates):
        for row in rows:
            found = torch.autograd.grad(loss(student.model, [row]).sum(), [*gates.parameters()])
            for total, gradient in zip(sums, found, strict=True):
                total += gradient.abs()
    depth = len(sums) // 2
    scores = [F.normalize(each, dim=0) for each in sums]
    heads = [Parts.of(each, 1, len(each)) for each in scores[:depth]]
    return heads, [Parts.of(each, ROUNDED_TO, len(each)) for each in scores[depth:]]


@torch.no_grad()
def fold(model: nn.Module, gates: Gates) -> None:
    """Multiply what the gates say in evaluation into the weights behind them, in place."""
    gates.eval()
    heads, neurons = gates.drawn()
    for layer, own, many in zip(layers_of(model), heads, neurons, strict=True):
        size = layer.output.in_features // len(own)
        layer.output.weight.mul_(own.clamp_min(LEAST).repeat_interleave(size))
        layer.falling.weight.mul_(many.clamp_min(LEAST))
