"""Tickets: what is rewound, what is removed, what survives a kill, and which ticket wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pocketlm.artifact import Artifact
from pocketlm.errors import DataError, RecipeError
from pocketlm.finetune import FineTune
from pocketlm.prune import lottery_ticket
from pocketlm.prune.lottery_ticket import (
    FindMaskedLmTickets,
    FindTickets,
    TryTicket,
    draw_again,
    is_winning,
    iterative_magnitude_pruning,
    masks_path,
    sparsities,
)
from pocketlm.prune.masks import load_masks, prunable, sparsity_of
from pocketlm.stage import Context
from pocketlm.train import Point
from tests.test_finetune import teacher_folder
from tests.tiny import KilledError, sentences
from tests.tiny_models import MAX_LENGTH, SINGLE, classifier, prepared

TRAINING = FineTune(
    mode="always", epochs=1, learning_rate=5e-3, head_rate=1.0, batch_size=16, max_length=MAX_LENGTH,
    precision="fp32",
)  # fmt: skip


def test_the_sparsity_of_every_round() -> None:
    assert sparsities(3, 0.1) == [0.1, 0.2, 0.3]
    assert sparsities(3, 0.2, "remaining") == pytest.approx([0.2, 0.36, 0.488])
    for rounds, share in ((0, 0.1), (10, 0.1), (3, 0.0), (1, 1.0)):
        with pytest.raises(RecipeError, match=f"rounds={rounds} and share={share} of the original weights"):
            sparsities(rounds, share)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_every_round_starts_from_the_same_weights_under_the_mask_of_the_last(tmp_path: Path) -> None:
    start = {name: weight.detach().clone() for name, weight in prunable(network()).items()}
    begun: list[dict[str, torch.Tensor]] = []

    def fresh() -> tuple[nn.Module, Callable[[int], None]]:
        model = network()

        def fit(number: int) -> None:
            begun.append({name: weight.detach().clone() for name, weight in prunable(model).items()})
            with torch.no_grad():  # another order of magnitudes in every round
                for weight in prunable(model).values():
                    weight *= torch.rand(weight.shape, generator=torch.Generator().manual_seed(number))

        return model, fit

    iterative_magnitude_pruning(fresh, [0.2, 0.5, 0.8], tmp_path)
    found = [load_masks(masks_path(tmp_path, number)) for number in (1, 2, 3)]
    assert [sparsity_of(masks) for masks in found] == pytest.approx([0.2, 0.5, 0.8], abs=0.01)
    for name, weight in start.items():
        assert torch.equal(begun[0][name], weight)
        for number in (1, 2):
            assert torch.equal(begun[number][name], weight * found[number - 1][name])
            assert not (found[number][name] & ~found[number - 1][name]).any()


def test_a_killed_search_goes_on_with_the_next_round(tmp_path: Path) -> None:
    fitted: list[int] = []

    def fresh(last: int) -> tuple[nn.Module, Callable[[int], None]]:
        def fit(number: int) -> None:
            if number == last:
                raise KilledError
            fitted.append(number)

        return network(), fit

    with pytest.raises(KilledError):
        iterative_magnitude_pruning(lambda: fresh(1), [0.2, 0.4, 0.6], tmp_path / "killed")
    iterative_magnitude_pruning(lambda: fresh(9), [0.2, 0.4, 0.6], tmp_path / "killed")
    assert fitted == [0, 1, 2]
    iterative_magnitude_pruning(lambda: fresh(9), [0.2, 0.4, 0.6], tmp_path / "whole")
    for number in (1, 2, 3):
        killed, whole = (masks_path(tmp_path / name, number).read_bytes() for name in ("killed", "whole"))
        assert killed == whole


def test_a_ticket_wins_within_a_deviation_of_the_whole_network() -> None:
    dense = [0.80, 0.82, 0.84]  # mean 0.82, deviation 0.02
    assert is_winning([0.79, 0.811], dense) and is_winning([0.9], dense)
    assert not is_winning([0.79, 0.809], dense)


def test_other_weights_of_the_same_mean_and_deviation() -> None:
    model = classifier().model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    draw_again(model, 1)
    for name, weight in model.state_dict().items():
        if name in prunable(model):
            assert abs(torch.corrcoef(torch.stack([weight.flatten(), before[name].flatten()]))[0, 1]) < 0.2
            assert weight.std() == pytest.approx(float(before[name].std()), rel=0.2)
        else:
            assert torch.equal(weight, before[name])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("task")
    (folder / "corpus.txt").write_text("\n".join(dict.fromkeys(sentences(700, longest=12))))
    artifact = prepared(folder, SINGLE, train=64, valid=24)
    return artifact.with_part("teacher_source", teacher_folder(folder / "source")).with_part(
        "corpus_source", folder / "corpus.txt"
    )


def context(folder: Path) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, folder)


FIND = FindTickets(rounds=3, share=0.3, training=TRAINING)


@pytest.fixture(scope="module")
def searched(task: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return FIND(task, context(tmp_path_factory.mktemp("searched")))


def test_a_search_leaves_masks_of_every_kind(searched: Artifact) -> None:
    assert searched.figures["sparsities"] == [0.3, 0.6, 0.9]
    folder = searched.parts["tickets"]
    masks = {kind: load_masks(masks_path(folder / kind, 3)) for kind in ("found", "one-shot")}
    for found in masks.values():
        assert sparsity_of(found) == pytest.approx(0.9, abs=0.001)
    name = next(iter(masks["found"]))
    assert len({tuple(found[name].flatten().tolist()) for found in masks.values()}) == 2


@pytest.mark.parametrize("kind", ["found", "random", "one-shot"])
def test_a_ticket_is_trained_under_its_mask(
    searched: Artifact, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[dict[str, torch.Tensor]] = []
    fit = FineTune.fit

    def watched(self: FineTune, teacher: Any, *given: Any) -> Any:
        curve = fit(self, teacher, *given)
        ended.append({name: weight.detach() == 0 for name, weight in prunable(teacher.model).items()})
        return curve

    monkeypatch.setattr(FineTune, "fit", watched)
    trial = TryTicket(kind, round=2, training=TRAINING)(searched, context(tmp_path)).figures["trial"]
    assert trial["sparsity"] == pytest.approx(0.6, abs=0.001)
    assert 0 < trial["valid"] <= 1 and 0 < trial["test"] <= 1
    zeros = sum(int(gone.sum()) for gone in ended[0].values())
    assert zeros / sum(gone.numel() for gone in ended[0].values()) == pytest.approx(0.6, abs=0.01)


def test_the_whole_network_is_round_zero_and_seeds_differ(searched: Artifact, tmp_path: Path) -> None:
    trials = [
        TryTicket(training=TRAINING, seed=seed)(searched, context(tmp_path / f"{number}")).figures["trial"]
        for number, seed in enumerate((0, 0, 1))
    ]
    assert trials[0] == trials[1] and trials[0]["sparsity"] == 0


@pytest.mark.parametrize("rewind_step", [0, 2])
def test_the_search_has_tried_every_ticket_once(task: Artifact, tmp_path: Path, rewind_step: int) -> None:
    found = replace(FIND, rewind_step=rewind_step)(task, context(tmp_path / "search"))
    searched = found.figures["searched"]
    assert [trial["round"] for trial in searched] == ([1, 2] if rewind_step else [0, 1, 2])
    for trial in searched:
        stage = TryTicket(round=trial["round"], training=TRAINING)
        assert stage(found, context(tmp_path / f"{trial['round']}")).figures["trial"] == trial


def test_a_search_killed_after_the_step_to_rewind_to_begins_its_first_round_again(
    task: Artifact, searched: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = replace(FIND, rewind_step=2)
    with monkeypatch.context() as patch:
        patch.setattr(lottery_ticket, "save_all", lambda *_: None)  # what comes after the first training
        patch.setattr(lottery_ticket, "write_json", _killed)
        with pytest.raises(KilledError):
            stage(task, context(tmp_path))
    for checkpoint in tmp_path.glob("round-*/*"):
        checkpoint.unlink()
    assert (tmp_path / "rewound.safetensors").exists()
    found = stage(task, context(tmp_path))
    first, whole = (load_masks(masks_path(made.parts["tickets"] / "found", 1)) for made in (found, searched))
    assert all(torch.equal(first[name], mask) for name, mask in whole.items())


def _killed(*_: Any) -> None:
    raise KilledError


@pytest.mark.parametrize("weights", ["rewound", "random"])
def test_a_ticket_starts_from_the_weights_that_are_asked_for(
    searched: Artifact, tmp_path: Path, weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, torch.Tensor]] = []

    def watched(self: FineTune, teacher: Any, *given: Any) -> list[Any]:
        begun.append({name: weight.detach().clone() for name, weight in prunable(teacher.model).items()})
        return [Point(1, 0.0, 0.5)]

    monkeypatch.setattr(FineTune, "fit", watched)
    TryTicket(round=1, weights=weights, training=TRAINING)(searched, context(tmp_path))
    masks = load_masks(masks_path(searched.parts["tickets"] / "found", 1))
    source = prunable(TRAINING.fresh(searched.parts["teacher_source"], SINGLE).model)
    for name, mask in masks.items():
        assert (begun[0][name][~mask] == 0).all()
        same = begun[0][name][mask] == source[name][mask]
        assert same.all() if weights == "rewound" else not same.any()


def test_a_ticket_is_rewound_to_the_step_that_is_asked_for(task: Artifact, tmp_path: Path) -> None:
    late = replace(FIND, rewind_step=2)(task, context(tmp_path / "late"))
    fresh = TRAINING.fresh(task.parts["teacher_source"], SINGLE)
    before = {name: weight.clone() for name, weight in prunable(fresh.model).items()}
    moved = lottery_ticket.rewound(fresh, late.parts["rewound"])
    assert all(not torch.equal(weight, before[name]) for name, weight in prunable(moved.model).items())
    with pytest.raises(RecipeError, match="rewind_step=99 is not below the steps of a round"):
        replace(FIND, rewind_step=99)(task, context(tmp_path / "never"))
    with pytest.raises(RecipeError, match="rewind_step=-1 is out of range"):
        replace(FIND, rewind_step=-1)


def test_masked_lm_tickets_fit_the_tasks_encoder(task: Artifact, tmp_path: Path) -> None:
    stage = FindMaskedLmTickets(rounds=2, share=0.3, texts=64, batch_size=16, max_length=MAX_LENGTH)
    found = stage(task, context(tmp_path))
    assert found.figures["sparsities"] == [0.3, 0.6] and len(found.figures["masked_lm"]) == 2
    masks = load_masks(masks_path(found.parts["tickets"] / "found", 2))
    names = prunable(TRAINING.fresh(task.parts["teacher_source"], SINGLE).model)
    assert {name for name in names if name not in masks} == {"bert.pooler.dense.weight"}
    trial = TryTicket(round=2, training=TRAINING)(found, context(tmp_path / "try")).figures["trial"]
    assert trial["sparsity"] == pytest.approx(0.6, abs=0.001)
    few = task.with_part("corpus_source", tmp_path / "few.txt")
    (tmp_path / "few.txt").write_text("a film\n")
    with pytest.raises(DataError, match="the corpus has no more than 256 texts"):
        stage(few, context(tmp_path / "none"))
