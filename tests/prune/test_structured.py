"""Structured pruning: gates, costs, what is chosen, and that cutting changes nothing."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError
from pocketlm.export.onnx import export, largest_difference
from pocketlm.models.families import layers_of
from pocketlm.models.load import Classifier, parameters_of
from pocketlm.models.uneven import cut_layers
from pocketlm.prune import costs as costs_module
from pocketlm.prune.costs import (
    Costs,
    MeasureLatency,
    check_budget,
    count_bytes,
    load_latency,
    measure_latency,
    sizes,
    thin,
)
from pocketlm.prune.gates import OPEN, Gates, HardConcrete, OpenGates, gated, shape_of
from pocketlm.prune.structured import LEAST, Structured, by_importance, chosen, fold, lagrangian, likely
from tests.prune.test_movement import TRAINING, context, taught  # noqa: F401
from tests.tiny_models import HEADS, MAX_LENGTH, NEURONS, SINGLE, WIDTH, classifier, examples_of


def test_a_gate_is_often_zero_or_one_and_its_chance_is_how_often_it_is_not_zero() -> None:
    torch.manual_seed(0)
    gate = HardConcrete(20_000)
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-3.0, -1.0, 0.0, 2.0]).repeat_interleave(5000))
    drawn = gate()
    assert ((drawn >= 0) & (drawn <= 1)).all() and (drawn == 1).any()
    for place in range(4):
        part = slice(5000 * place, 5000 * (place + 1))
        share = float((drawn[part] != 0).float().mean())
        assert share == pytest.approx(float(gate.chance()[part].mean().detach()), abs=0.02)
    gate.eval()
    assert torch.equal(gate(), gate())


def test_open_gates_change_a_model_little_and_closed_ones_silence_it() -> None:
    made = classifier(layers=3)
    encoded = made.encode(examples_of(SINGLE, 12).texts)
    before = made.logits(encoded)
    made.model.eval()
    gates = Gates(*shape_of(made.model))
    with gated(made.model, gates):
        with torch.no_grad():
            for parameter in gates.parameters():
                parameter.fill_(9.0)
        assert np.allclose(made.logits(encoded), before, atol=1e-5)
        with torch.no_grad():
            gates.attention.log_alpha[1] = gates.ffn.log_alpha[2] = -9.0
        said = made.logits(encoded)
    small = classifier(layers=3)
    everything = [list(range(HEADS)), list(range(NEURONS))]
    cut_layers(
        small.model,
        [everything[0], [], everything[0]],
        [everything[1], everything[1], []],
    )
    assert np.allclose(said, small.logits(encoded), atol=1e-5)
    assert np.allclose(made.logits(encoded), before, atol=1e-6) and not hasattr(made.model, "gates")


def closing(gates: Gates, seed: int = 0) -> None:
    """Random gates, some of them shut, each of its own height."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in gates.named_parameters():
            if name != "multipliers":
                parameter.copy_(torch.randn_like(parameter) * 4 + 1)


@pytest.mark.parametrize("architecture", ["bert", "mpnet"])
def test_the_cut_model_says_what_the_gated_one_said(architecture: Any, tmp_path: Path) -> None:
    made = classifier(architecture, layers=3)
    made.model.eval()
    encoded = made.encode(examples_of(SINGLE, 12).texts)
    gates = Gates(*shape_of(made.model))
    with gated(made.model, gates):
        with torch.no_grad():  # shut, half open and open
            for parameter in gates.parameters():
                parameter.copy_(torch.tensor([-9.0, 0.5, 9.0])[torch.randint(3, parameter.shape)])
        gates.eval()
        said = made.logits(encoded)
        drawn = gates.drawn()
        stay = [[(each > LEAST).nonzero()[:, 0].tolist() for each in group] for group in drawn]
        # Gates between nothing and the least that a part keeps would differ: there are none.
        for group in drawn:
            assert all(((each == 0) | (each > LEAST)).all() for each in group)
        fold(made.model, gates)
    cut_layers(made.model, *stay)
    assert np.allclose(made.logits(encoded), said, atol=1e-5)
    export(made, tmp_path / "model.onnx")
    assert largest_difference(made, tmp_path / "model.onnx", examples_of(SINGLE, 4).texts) < 1e-4


TABLE = Costs(1.0, (0, 2, 4), (0.0, 2.0, 3.0), (0, 16, 48), (0.0, 1.0, 2.0))


def test_costs_are_linear_between_what_was_measured_and_have_a_gradient() -> None:
    heads = torch.tensor([0.0, 1.0, 3.0], requires_grad=True)
    neurons = torch.tensor([48.0, 32.0, 8.0], requires_grad=True)
    total = TABLE.total(heads, neurons)
    assert float(total.detach()) == pytest.approx(1 + 0 + 1 + 2.5 + 2 + 1.5 + 0.5)
    total.backward()
    assert heads.grad is not None and heads.grad.tolist() == pytest.approx([1.0, 1.0, 0.5])
    assert neurons.grad is not None and neurons.grad.tolist() == pytest.approx([1 / 32, 1 / 32, 1 / 16])
    check_budget(TABLE, 1.5, 3, "ms")
    with pytest.raises(
        RecipeError, match=r"the budget of 0\.9 ms is below what is left without any attention"
    ):
        check_budget(TABLE, 0.9, 3, "ms")
    assert sizes(48, 5) == (0, 12, 24, 48) and sizes(4, 3) == (0, 4)


def test_bytes_are_those_of_the_cut_model() -> None:
    made = classifier(layers=3)
    table = count_bytes(made)
    whole = [torch.full((3,), float(count)) for count in (HEADS, NEURONS)]
    assert float(table.total(*whole)) == parameters_of(made.model)
    heads, neurons = torch.tensor([2.0, 0.0, 4.0]), torch.tensor([16.0, 48.0, 0.0])
    cut_layers(made.model, [[0, 1], [], [0, 1, 2, 3]], [range(16), range(48), []])
    # But for the biases of output maps, of which the table takes a share.
    assert float(table.total(heads, neurons)) == pytest.approx(parameters_of(made.model), rel=0.01)


class SlowTokenizer:
    """One that takes longer than the graph."""

    MS = 20.0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode_batch(self, texts: list[Any]) -> Any:
        time.sleep(self.MS / 1e3)
        return cast(Any, self.tokenizer).encode_batch(texts)


def test_latency_is_measured_for_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs_module, "ROUNDS", 3)
    monkeypatch.setattr(costs_module, "NEURON_SIZES", 3)
    made = classifier(layers=3)
    made.tokenizer = cast(Any, SlowTokenizer(made.tokenizer))
    table, whole = measure_latency(made, ("a good film",))
    assert min(whole, table.rest) > SlowTokenizer.MS > table.attention[-1]
    assert Costs.of(json.loads(json.dumps(asdict(table)))) == table
    assert table.heads == (0, 1, 2, 3, 4) and table.neurons == (0, 48)
    assert table.attention[0] == 0 and list(table.attention) == sorted(table.attention)
    small = thin(classifier(layers=3), 2, 16)
    assert len(layers_of(classifier(layers=3).model)) == 3
    assert small.model.config.num_hidden_layers == 2


def test_one_table_serves_budgets_of_time(
    taught: Artifact,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs_module, "ROUNDS", 3)
    monkeypatch.setattr(costs_module, "NEURON_SIZES", 3)
    timed = MeasureLatency()(taught, context(tmp_path / "latency"))
    table, whole = load_latency(timed)
    assert table.heads == (0, 1, 2, 3, 4) and whole > 0
    budget = table.rest * 1.2
    for stage in (Structured(speedup=whole / budget), Structured(max_latency_ms=budget)):
        done = replace(stage, learned=False)(timed, context(tmp_path / "cut"))
        kept = [
            torch.tensor([float(size) for size in done.figures["structure"][of]])
            for of in ("heads", "neurons")
        ]
        assert float(table.total(*kept)) <= budget * (1 + 1e-6)
    with pytest.raises(RecipeError, match="length=0 is out of range"):
        MeasureLatency(length=0)


def test_the_lagrangian_pulls_to_the_budget_and_its_multipliers_climb() -> None:
    gates = Gates([4] * 3, [48] * 3)
    start = float(TABLE.total(*gates.whole()))
    with torch.no_grad():
        gates.multipliers.fill_(1.0)
    spent = float(TABLE.total(*gates.sizes()).detach())
    for share in (0.0, 0.5, 1.0):
        excess = (spent - (start + share * (4.0 - start))) / start
        found = lagrangian(gates, [(TABLE, 4.0)], [start], share)
        assert float(found.detach()) == pytest.approx(excess + excess**2, abs=1e-5)
    found.backward()
    assert gates.multipliers.grad is not None
    assert (gates.multipliers.grad[0] < 0).all() and (gates.multipliers.grad[1] == 0).all()
    assert all((each.log_alpha.grad > 0).all() for each in gates.heads)


@pytest.mark.parametrize("budget", [3.0, 6.0, 9.0, 99.0])
def test_what_is_chosen_meets_the_budget_and_uses_it(budget: float) -> None:
    gates = Gates([4] * 3, [48] * 3)
    closing(gates, 1)
    heads, neurons = chosen(*likely(gates), [(TABLE, budget)])

    def spent(*changed: tuple[int, int, int]) -> float:
        counts = [[float(len(own)) for own in group] for group in (heads, neurons)]
        for group, layer, more in changed:
            counts[group][layer] += more
        return float(TABLE.total(*map(torch.tensor, counts)))

    assert spent() <= budget + 1e-6
    room = [(0, place, 1) for place, own in enumerate(heads) if len(own) < 4]
    room += [(1, place, 16) for place, own in enumerate(neurons) if len(own) < 48]
    assert all(spent(change) > budget for change in room)
    assert all(len(own) % 16 == 0 for own in neurons)
    if budget == 99.0:
        assert all(len(own) == 4 for own in heads)
    for layer, own in enumerate(heads):  # within a layer the likeliest stay
        alpha = gates.heads[layer].log_alpha.detach()
        gone = [index for index in range(4) if index not in own]
        assert not own or not gone or alpha[own].min() >= alpha[gone].max()


def test_a_student_is_cut_to_a_budget(taught: Artifact, tmp_path: Path) -> None:  # noqa: F811
    whole = Classifier.load(taught.parts["student"], SINGLE, MAX_LENGTH)
    budget = parameters_of(whole.model) * 0.7 / 1e6
    stage = Structured(speedup=None, max_size_mb=budget, gate_rate=0.5, training=TRAINING)
    done = stage(taught, context(tmp_path / "stage"))
    student = Classifier.load(done.parts["student"], SINGLE, MAX_LENGTH)
    assert parameters_of(student.model) <= budget * 1e6 * 1.01
    assert done.figures["parameters"] == parameters_of(student.model)
    assert done.figures["structure"]["parameters_before"] == parameters_of(whole.model)
    assert len(done.figures["structure"]["heads"]) == 2
    twin = Classifier.load(done.parts["untrained_student"], SINGLE, MAX_LENGTH)
    shapes = [
        {name: weight.shape for name, weight in made.model.state_dict().items()} for made in (twin, student)
    ]
    assert shapes[0] == shapes[1]
    encoded = student.encode(examples_of(SINGLE, 4).texts)
    assert np.isfinite(student.logits(encoded)).all()


def test_a_student_may_be_cut_at_once_by_importance(taught: Artifact, tmp_path: Path) -> None:  # noqa: F811
    budget = parameters_of(Classifier.load(taught.parts["student"], SINGLE, MAX_LENGTH).model) * 0.7 / 1e6
    stage = Structured(speedup=None, max_size_mb=budget, learned=False)
    done = stage(taught, context(tmp_path / "stage"))
    assert done.figures["parameters"] <= budget * 1e6 * 1.01 and "distil" not in done.figures


def test_importance_is_what_a_gate_would_change_the_loss_by(taught: Artifact) -> None:  # noqa: F811
    student = Classifier.load(taught.parts["student"], SINGLE, MAX_LENGTH)
    with torch.no_grad():  # a silent neuron and a silent head
        layers_of(student.model)[0].falling.weight[:, 5] = 0
        layers_of(student.model)[1].output.weight[:, : WIDTH // HEADS] = 0
    heads, neurons = by_importance(student, taught)
    assert neurons[0].order[0] == 5 and neurons[0].worths[0] == 0 < neurons[0].worths[1]
    assert heads[1].order[0] == 0 and heads[1].worths[0] == 0 < heads[1].worths[1]
    assert all(part.kept == len(part.order) for part in (*heads, *neurons))
    with gated(student.model, OpenGates(*shape_of(student.model))):
        encoded = student.encode(examples_of(SINGLE, 5).texts)
        said = student.logits(encoded)
    assert np.allclose(said, student.logits(encoded), atol=1e-6)


def test_what_cannot_be_is_refused(taught: Artifact, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match="is no budget; give at least one, above 0"):
        Structured(speedup=None)
    with pytest.raises(RecipeError, match="is no budget"):
        Structured(max_latency_ms=0.0)
    with pytest.raises(RecipeError, match="the warm-up must be between 0 and 1"):
        Structured(max_size_mb=1.0, warmup=1.0)
    with pytest.raises(RecipeError, match="bytes is below what is left without any attention"):
        Structured(speedup=None, max_size_mb=1e-4)(taught, context(tmp_path / "stage"))
    assert Gates([2], [3]).attention.log_alpha.tolist() == [OPEN]
