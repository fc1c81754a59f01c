"""Gates that learn which heads, neurons and sublayers a task can do without.

Louizos, Welling and Kingma 2018 (https://arxiv.org/abs/1712.01312), section 2: a gate is a random number of
the hard concrete distribution, between 0 and 1 and often exactly one of them, whose chance of not being 0
has a gradient. Xia et al. 2022, CoFi (https://arxiv.org/abs/2204.00408), section 3: coarse gates on whole
sublayers and fine ones on heads and neurons are learned together, and a Lagrangian holds the network to a
budget.

Deviations: the budget is measured milliseconds or bytes (`pocketlm.prune.costs`), not a share of parameters;
there are no gates on hidden units, which the `student` stage cuts by projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from pocketlm.models.families import layers_of

LOW, HIGH = -0.1, 1.1
TEMPERATURE = 2 / 3
OPEN = 2.5
"""log α before training: a gate is open with a chance of 98 %."""


class HardConcrete(nn.Module):
    """Independent gates of the hard concrete distribution.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.log_alpha = nn.Parameter(torch.full((count,), OPEN))

    def chance(self) -> Tensor:
        """P(gate ≠ 0) of each (eq. 12), [count]."""
        return (self.log_alpha - TEMPERATURE * math.log(-LOW / HIGH)).sigmoid()

    def forward(self) -> Tensor:
        """A sample in training (eq. 10 and 11), the likeliest values in evaluation (eq. 13), [count]."""
        if self.training:
            noise = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
            soft = ((noise.log() - (1 - noise).log() + self.log_alpha) / TEMPERATURE).sigmoid()
        else:
            soft = self.log_alpha.sigmoid()
        return (soft * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


class Gates(nn.Module):
    """The gates of an encoder: of every layer's attention, FFN, heads and neurons; and the multipliers.

    Args:
        heads: Heads of every layer.
        neurons: Neurons of every layer.
    """

    def __init__(self, heads: Sequence[int], neurons: Sequence[int]) -> None:
        super().__init__()
        self.attention, self.ffn = HardConcrete(len(heads)), HardConcrete(len(neurons))
        self.heads = nn.ModuleList([HardConcrete(count) for count in heads])
        self.neurons = nn.ModuleList([HardConcrete(count) for count in neurons])
        # What the Lagrangian pays for the excess of two budgets and for its square: they climb where all else
        # descends.
        self.multipliers = nn.Parameter(torch.zeros(2, 2))
        self.multipliers.register_hook(torch.neg)

    def sizes(self) -> tuple[Tensor, Tensor]:
        """Expected heads and neurons of every layer, the sublayer's own chance in it, [layers] each."""
        heads = torch.stack([cast(HardConcrete, each).chance().sum() for each in self.heads])
        neurons = torch.stack([cast(HardConcrete, each).chance().sum() for each in self.neurons])
        return heads * self.attention.chance(), neurons * self.ffn.chance()

    def whole(self) -> tuple[Tensor, Tensor]:
        """Heads and neurons of every layer with all gates open, [layers] each."""
        heads, neurons = (
            [float(cast(HardConcrete, each).count) for each in group] for group in (self.heads, self.neurons)
        )
        return torch.tensor(heads), torch.tensor(neurons)

    def drawn(self) -> tuple[list[Tensor], list[Tensor]]:
        """A value for every head and every neuron, the sublayer's gate in it: one tensor a layer each."""
        attention, ffn = self.attention(), self.ffn()
        heads = [attention[place] * each() for place, each in enumerate(self.heads)]
        return heads, [ffn[place] * each() for place, each in enumerate(self.neurons)]


class OpenGates(nn.Module):
    """Gates that are 1 and only there for their gradients.

    Args:
        heads: Heads of every layer.
        neurons: Neurons of every layer.
    """

    def __init__(self, heads: Sequence[int], neurons: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ParameterList([torch.ones(count) for count in heads])
        self.neurons = nn.ParameterList([torch.ones(count) for count in neurons])

    def drawn(self) -> tuple[list[Tensor], list[Tensor]]:
        """1 for every head and every neuron, one tensor a layer each."""
        return cast(list[Tensor], [*self.heads]), cast(list[Tensor], [*self.neurons])


def shape_of(model: nn.Module) -> tuple[list[int], list[int]]:
    """Heads and neurons of every layer."""
    layers = layers_of(model)
    heads = [int(cast(Any, model).config.num_attention_heads)] * len(layers)
    return heads, [layer.falling.in_features for layer in layers]


@contextmanager
def gated(model: nn.Module, gates: Gates | OpenGates) -> Generator[None]:
    """Put gates on a model's heads and neurons while it is trained; they are part of it, as `gates`.

    A sublayer of which nothing is open has no output bias either.

    Args:
        model: An encoder; all of its layers are alike.
        gates: Of its shape.
    """
    layers = layers_of(model)
    size = layers[0].query.out_features // shape_of(model)[0][0]
    cast(Any, model).gates = gates.train(model.training)
    values: dict[str, Any] = {}

    def draw(_: nn.Module, __: Any) -> None:
        heads, neurons = gates.drawn()
        values["heads"] = [each.repeat_interleave(size) for each in heads]
        values["neurons"] = neurons
        values["attention"], values["ffn"] = _open(heads), _open(neurons)

    def scaled(key: str, place: int) -> Callable[[nn.Module, Any], Any]:
        return lambda _, given: (given[0] * values[key][place].to(given[0].dtype), *given[1:])

    def silenced(key: str, place: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _, __, said: said * values[key][place].to(said.dtype)

    hooks: list[Any] = [model.register_forward_pre_hook(draw)]
    for place, layer in enumerate(layers):
        for key, linear, coarse in (
            ("heads", layer.output, "attention"),
            ("neurons", layer.falling, "ffn"),
        ):
            hooks.append(linear.register_forward_pre_hook(scaled(key, place)))
            hooks.append(linear.register_forward_hook(silenced(coarse, place)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        del cast(Any, model).gates


def _open(parts: Sequence[Tensor]) -> list[Tensor]:
    """1 where any part of a sublayer is there, else 0: its bias goes with the last of it."""
    return [(each.detach() > 0).any().to(each.dtype) for each in parts]
