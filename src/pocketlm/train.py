"""The one training loop: every stage that trains hands it a loss per example.

A batch is a list of example indices, and a loss maps (model, indices) to one number an example.
So accumulation, several processes and a short last batch all weigh every example alike, and the
result does not depend on how a global batch is cut up.

A run killed anywhere goes on from its last checkpoint and ends with the same weights, bit for bit
on the same machine: batches follow from (seed, epoch) alone, and the checkpoint holds the state of
the optimizer and of the random numbers.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import safe_open
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from pocketlm.data.batches import batch_order, shard
from pocketlm.errors import RecipeError, storage_errors
from pocketlm.progress import Progress

Loss = Callable[[nn.Module, Sequence[int]], Tensor]
Precision = Literal["auto", "fp32", "bf16"]

CHECKPOINT_SECONDS = 60.0

# glibc's mallopt(3): its numbers of the two options, and what they are set to.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST_KEPT, LARGEST_KEPT = 2**31 - 1, 32 * 2**20  # bytes; the second is the most that mallopt takes


@dataclass(frozen=True)
class Settings:
    """How long and how hard to train.

    Args:
        epochs: Passes over the training examples, at most.
        learning_rate: Peak of the schedule: linear warm-up, then linear decay to 0.
        batch_size: Examples per optimizer step, over all processes.
        micro_batch: Examples per backward pass; None is the whole batch.
        warmup: Share of all steps over which the learning rate rises.
        weight_decay: AdamW's, on matrices only.
        clip: Largest gradient norm.
        patience: Evaluations without a better valid score after which to stop; None never stops.
        evaluations: Evaluations per epoch.
        seed: Of batches, dropout and new weights.
        precision: `bf16` computes matrix products in bfloat16; `auto` does where the CPU has it.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 32
    micro_batch: int | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    patience: int | None = None
    evaluations: int = 1
    seed: int = 0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        positive = ("epochs", "learning_rate", "batch_size", "clip", "evaluations")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise RecipeError(f"{name}={getattr(self, name)} is out of range; it must be above 0")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"warmup={self.warmup} is out of range; allowed: 0 up to below 1")
        for name in ("weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise RecipeError(f"{name}={getattr(self, name)} is out of range; it must be 0 or more")
        for name in ("micro_batch", "patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RecipeError(f"{name}={value} is out of range; it must be above 0, or null")

    @classmethod
    def of(cls, stage: Any) -> Settings:
        """The settings among a stage's fields, under the same names; the others keep their defaults."""
        names = [known.name for known in fields(cls) if hasattr(stage, known.name)]
        return cls(**{name: getattr(stage, name) for name in names})


@dataclass
class Point:
    """One point of a learning curve: losses since the point before, and the score on valid."""

    step: int
    train_loss: float
    valid_score: float


@dataclass
class _State:
    """Where a run stands; everything that a checkpoint keeps beside tensors."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    bad_evaluations: int = 0
    stopped: bool = False
    curve: list[dict[str, Any]] | None = None


def train(
    model: nn.Module,
    loss: Loss,
    lengths: Sequence[int],
    settings: Settings,
    evaluate: Callable[[], float],
    folder: Path,
    progress: Progress,
    description: str,
    loss_parameters: nn.Module | None = None,
    factors: Mapping[nn.Parameter, float] | None = None,
    each_step: Callable[[int, int], None] | None = None,
    kept_from: float = 0.0,
) -> list[Point]:
    """Train `model` in place and leave it with the weights of its best evaluation.

    Args:
        model: Any module.
        loss: Maps (model, example indices) to one loss an example, [batch].
        lengths: Length of every training example, for length-bucketed batches.
        settings: How long and how hard.
        evaluate: Score of `model` on valid; higher is better.
        folder: Where checkpoints live; one found here is continued.
        progress: Shows the steps.
        description: What the bar says.
        loss_parameters: A module of the loss's own that is trained along (projections).
        factors: What the learning rate of a parameter is multiplied by; 1 where nothing is said.
        each_step: Called at the start and after every step with the steps done and the steps in all; what it
            does has to follow from these and the weights, and a call with the same steps again may change
            nothing, because a run that was killed goes on from a checkpoint.
        kept_from: Share of the steps before which no evaluation counts as the best: a network that is still
            being pruned is better than what it will be.

    Returns:
        The learning curve, one point an evaluation.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    _keep_memory()
    half = computes_half(settings.precision)
    set_seed(settings.seed)
    learner = nn.ModuleList([model] if loss_parameters is None else [model, loss_parameters])
    optimizer = torch.optim.AdamW(
        _groups(learner, settings.weight_decay, factors or {}), lr=settings.learning_rate, fused=True
    )
    steps_per_epoch = -(-len(lengths) // settings.batch_size)
    total = settings.epochs * steps_per_epoch
    state = _State(curve=[])
    best: dict[str, Tensor] = {}
    path = folder / "checkpoint.safetensors"
    if path.exists():
        state, best = _restore(path, learner, optimizer)
    last_checkpoint = time.monotonic()
    learner.train()
    if each_step is not None:
        each_step(state.step, total)
    with progress.task(description, total, state.step) as advance:
        while state.step < total and not state.stopped:
            epoch, first = divmod(state.step, steps_per_epoch)
            order = batch_order(lengths, settings.batch_size, settings.seed, epoch)
            for batch in order[first:]:
                rate = settings.learning_rate * _schedule(state.step, total, settings.warmup)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["factor"]
                state.loss_sum += _backward(
                    accelerator, learner, model, loss, batch, settings.micro_batch, half
                )
                state.loss_count += 1
                nn.utils.clip_grad_norm_(learner.parameters(), settings.clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                state.step += 1
                if each_step is not None:
                    each_step(state.step, total)
                advance(1)
                if _is_evaluation(state.step, steps_per_epoch, settings.evaluations):
                    best = _evaluate(state, evaluate, learner, best, settings.patience, kept_from * total)
                if accelerator.is_main_process and time.monotonic() - last_checkpoint >= CHECKPOINT_SECONDS:
                    _checkpoint(path, state, learner, best, optimizer)
                    last_checkpoint = time.monotonic()
                if state.stopped:
                    break
    learner.load_state_dict(best)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for left in (path, _aside(path)):  # the second is of a run that was killed while it wrote
            left.unlink(missing_ok=True)
    return [Point(**point) for point in state.curve or []]


def computes_half(precision: Precision) -> bool:
    """True where matrix products are computed in bfloat16."""
    return precision == "bf16" or (precision == "auto" and has_bf16())


def has_bf16() -> bool:
    """True where bfloat16 matrix products are faster than float32 ones on this CPU or GPU."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    cpu = cast(Any, torch.cpu)
    return bool(cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())


def _keep_memory() -> None:
    """Keep the memory of one step for the next, where the C library is glibc.

    By default it gives large blocks back to the system, which clears every page again at the next step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)


def _schedule(step: int, total: int, warmup: float) -> float:
    """Linear warm-up to 1, then linear decay to 0: the factor of step 0 … total - 1."""
    rising = warmup * total
    if step < rising:
        return (step + 1) / (rising + 1)
    return (total - step) / (total - rising)


def _groups(
    learner: nn.Module, weight_decay: float, factors: Mapping[nn.Parameter, float]
) -> list[dict[str, Any]]:
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    for parameter in learner.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim > 1, factors.get(parameter, 1.0)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "factor": factor}
        for (decays, factor), parameters in groups.items()
    ]


def _backward(
    accelerator: Accelerator,
    learner: nn.Module,
    model: nn.Module,
    loss: Loss,
    batch: list[int],
    micro_batch: int | None,
    half: bool,
) -> float:
    """Leave the gradient of the mean loss over a global batch in every process; returns that loss.

    The gradients of the processes are summed by hand rather than by DistributedDataParallel: a loss
    may call the model any number of times and in any way, and a process may have no example at all.
    """
    mine = shard(batch, accelerator.process_index, accelerator.num_processes)
    size = micro_batch or len(batch)
    total = torch.zeros(())
    for start in range(0, len(mine), size):
        # Not Accelerator's mixed precision: that is fixed once for the whole process.
        with torch.autocast(accelerator.device.type, torch.bfloat16, enabled=half):
            losses = loss(model, mine[start : start + size])
        value = losses.float().sum() / len(batch)
        accelerator.backward(value)
        total += value.detach().cpu()
    if accelerator.num_processes > 1:
        _sum_gradients(accelerator, learner)
        total = cast(Tensor, accelerator.reduce(total, "sum"))
    return float(total)


def _sum_gradients(accelerator: Accelerator, learner: nn.Module) -> None:
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in trained])
    summed = cast(Tensor, accelerator.reduce(flat, "sum"))
    for parameter, gradient in zip(trained, torch.split(summed, [p.numel() for p in trained]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def _is_evaluation(step: int, steps_per_epoch: int, evaluations: int) -> bool:
    within = (step - 1) % steps_per_epoch + 1
    return within * evaluations // steps_per_epoch > (within - 1) * evaluations // steps_per_epoch


def _evaluate(
    state: _State,
    evaluate: Callable[[], float],
    learner: nn.Module,
    best: dict[str, Tensor],
    patience: int | None,
    first: float,
) -> dict[str, Tensor]:
    learner.eval()
    with torch.no_grad():
        score = evaluate()
    learner.train()
    curve = state.curve or []
    counted = [point["valid_score"] for point in curve if point["step"] >= first]
    counts = state.step >= first
    better = counts and (not counted or score > max(counted))
    mean = state.loss_sum / max(state.loss_count, 1)
    state.curve = [*curve, asdict(Point(state.step, mean, score))]
    state.loss_sum, state.loss_count = 0.0, 0
    state.bad_evaluations = 0 if better or not counts else state.bad_evaluations + 1
    state.stopped = patience is not None and state.bad_evaluations >= patience
    if not better:
        return best
    return {name: tensor.detach().clone() for name, tensor in learner.state_dict().items()}


def _checkpoint(
    path: Path, state: _State, learner: nn.Module, best: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    """Write everything that the rest of the run depends on, aside and then in one rename."""
    moments = cast(dict[int, dict[str, Tensor]], optimizer.state_dict()["state"])
    tensors = {
        "random": torch.get_rng_state(),
        **{f"model.{name}": tensor for name, tensor in learner.state_dict().items()},
        **{f"best.{name}": tensor for name, tensor in best.items()},
        **{f"moment.{i}.{name}": tensor for i, moment in moments.items() for name, tensor in moment.items()},
    }
    save_tensors(tensors, path, state=json.dumps(asdict(state)))


def save_tensors(tensors: Mapping[str, Tensor], path: Path, **about: str) -> None:
    """Write tensors aside and then in one rename: the file is whole or absent."""
    aside = _aside(path)
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A clone each: safetensors refuses tensors that share memory, as tied weights do.
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, aside, about)
        os.replace(aside, path)


def _aside(path: Path) -> Path:
    """Where a checkpoint stands until it is whole."""
    return path.with_name(path.name + ".partial")


def _restore(
    path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[_State, dict[str, Tensor]]:
    """The inverse of `_checkpoint`: fills the learner, the optimizer and the random numbers."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "moment": {}}
    with cast(Any, safe_open(path, framework="pt")) as file:
        state = _State(**json.loads(file.metadata()["state"]))
        torch.set_rng_state(file.get_tensor("random"))
        for key in file.keys():  # noqa: SIM118 (not a dict)
            part, _, name = key.partition(".")
            if part in parts:
                parts[part][name] = file.get_tensor(key)
    learner.load_state_dict(parts["model"])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in parts["moment"].items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state, parts["best"]
