"""The ledger of a pocket: every figure its report shows, in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pocketlm.measure.machine import commit, machine, versions
from pocketlm.measure.zeros import told
from pocketlm.tasks.task import Task


@dataclass(frozen=True)
class Cost:
    """What a stage took, over all attempts at it: those that were killed are in it, too.

    Args:
        stage: Its name in the recipe.
        seconds: Wall clock.
        energy_wh: Watt-hours; None where not measured.
        gco2: Grams of CO2 equivalent; None where not measured.
        energy_method: `rapl`, `tdp` or `none`.
    """

    stage: str
    seconds: float
    energy_wh: float | None
    gco2: float | None
    energy_method: str


TEACHER_STAGES = ("finetune",)
POCKET_STAGES = (
    *("augment", "assistant", "student", "subwords", "tinybert_general", "relations"),
    *("teacher_outputs", "tinybert", "latency", "structured", "distill", "magnitude", "movement", "obd"),
    *("qat", "share", "gptq", "calibrate", "export", "int8", "static_int8", "weight_only", "pack"),
)
# What stages chose or found that the verdicts only put in words.
CHOSEN = ("pruned", "structure", "quantization", "unpacked_bytes")
# Stages after which a pocket may be no better than the same student without its teacher.
LEARNING = (
    *("tinybert_general", "relations", "tinybert", "structured", "distill"),
    *("magnitude", "movement", "obd"),
)


def ledger(figures: Mapping[str, Any], costs: Sequence[Cost], seed: int) -> dict[str, Any]:
    """Put together what the stages found and what they cost.

    Args:
        figures: Of the last artifact of a recipe that ends with `measure`.
        costs: Of every stage.
        seed: Of the recipe.
    """
    measured, task = figures["measured"], Task.from_dict(figures["task"])
    made = {"teacher": spent(costs, TEACHER_STAGES), "pocket": spent(costs, POCKET_STAGES)}
    name = figures["teacher_name"] + (", fine-tuned" if figures["teacher"]["trained"] else "")
    both = teacher_and_pocket(measured, task, name, "pocket")
    teacher, pocket = ({**row, **made[row["kind"]]} for row in both["rows"])
    controls = [
        {
            **dict.fromkeys(
                (
                    "ram_bytes",
                    "start_ms",
                    "throughput_per_s",
                    "eager_p50_ms",
                    "retention_low",
                    "retention_high",
                )
            ),
            **row,
            # A control without a file of its own is the pocket's graph with other weights.
            **(
                {name: pocket[name] for name in ("size_bytes", "p50_ms", "p95_ms")}
                if row["size_bytes"] is None
                else {}
            ),
            "retention_pct": 100 * row["score"] / teacher["score"],
        }
        for row in figures["controls"]
    ]
    return {
        **both,
        "rows": [teacher, pocket, *controls],
        "curves": curves(figures),
        "bill": bill(measured, costs),
        "verdicts": [
            *verdicts(pocket, controls, measured["ratios"], any(cost.stage in LEARNING for cost in costs)),
            *([told(measured["zeros"], pocket["ram_bytes"])] if "zeros" in measured else []),
            *not_in_train(figures),
            *from_stored(figures),
            *in_float(figures),
            *unpacked(figures),
        ],
        "zeros": measured.get("zeros"),
        **{name: figures.get(name) for name in CHOSEN},
        "seed": seed,
    }


def teacher_and_pocket(measured: Mapping[str, Any], task: Task, teacher: str, pocket: str) -> dict[str, Any]:
    """The ledger of one comparison (`pocketlm.measure.compare.compare`), without controls or a bill.

    Args:
        measured: What `compare` found.
        task: Decides on the headline metric.
        teacher: What its row is called.
        pocket: What its row is called.
    """
    labels = {"teacher": teacher, "pocket": pocket}
    return {
        "metric": task.metric,
        "split": "test",
        "examples": measured["examples"],
        "rows": [{**row, "label": labels[row["kind"]]} for row in measured["rows"]],
        "ratios": measured["ratios"],
        "curves": [],
        "confusion": measured["confusion"],
        "by_name": measured.get("by_name"),
        "disagreements": measured["disagreements"],
        "bill": bill(measured, ()),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "threads": measured["threads"],
        "tokens_p50": measured["tokens_p50"],
        "verdicts": slower(measured["ratios"]),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def spent(costs: Sequence[Cost], stages: Sequence[str]) -> dict[str, float | None]:
    """Seconds and watt-hours of some stages together."""
    of = [cost for cost in costs if cost.stage in stages]
    return {
        "train_seconds": sum(cost.seconds for cost in of),
        "energy_wh": total(cost.energy_wh for cost in of),
    }


def total(values: Iterable[float | None]) -> float | None:
    """The sum; None where any part was not measured."""
    known = list(values)
    return (
        None if any(value is None for value in known) else sum(value for value in known if value is not None)
    )


def curves(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Learning curves of the stages that trained."""
    names = (("teacher", "teacher"), ("assistant", "assistant"), ("pocket", "distil"))
    found = [(name, figures.get(key, {}).get("curve", [])) for name, key in names]
    return [{"name": name, "points": points} for name, points in found if points]


def bill(measured: Mapping[str, Any], costs: Sequence[Cost]) -> dict[str, Any]:
    """What making the pocket took, and after how many requests that is repaid; null without `costs`."""
    make_wh = total(cost.energy_wh for cost in costs) if costs else None
    request = measured["request_wh"]
    known = make_wh is not None and None not in request.values()
    saved = request["teacher"] - request["pocket"] if known else 0
    return {
        "make_seconds": sum(cost.seconds for cost in costs) if costs else None,
        "make_wh": make_wh,
        "make_gco2": total(cost.gco2 for cost in costs) if costs else None,
        "energy_method": measured["energy_method"],
        "request_wh_teacher": request["teacher"],
        "request_wh_pocket": request["pocket"],
        "repaid_after_requests": round(make_wh / saved) if make_wh is not None and saved > 0 else None,
        "country": measured["grid"],
        "note": "All stages of the recipe, controls, measuring and killed attempts included.",
    }


def verdicts(
    pocket: Mapping[str, Any],
    controls: Sequence[Mapping[str, Any]],
    ratios: Mapping[str, Any],
    distilled: bool,
) -> list[str]:
    """What an honest report has to say first."""
    beaten = [
        f"A cheaper control is as good: {control['label']} scores {control['score']:.3f}, "
        f"the pocket {pocket['score']:.3f}."
        for control in controls
        if control["score"] >= pocket["score"]
    ]
    skipped = "The controls were skipped: nothing here shows that distillation was worth it."
    return [*beaten, *slower(ratios), *([skipped] if distilled and not controls else [])]


def not_in_train(figures: Mapping[str, Any]) -> list[str]:
    """Said where the test split holds intents or tags that no model could learn."""
    missing: Mapping[str, int] = figures.get("unknown", {}).get("test", {})
    intents, tags = missing.get("intents", 0), missing.get("tags", 0)
    if not intents and not tags:
        return []
    return [
        f"Of the test split, {intents} intents and {tags} tags do not occur in train; "
        "they count as wrong for every model here."
    ]


def from_stored(figures: Mapping[str, Any]) -> list[str]:
    """Said where products compute in float32 because this CPU is slower at those of integers."""
    found: Mapping[str, Any] = figures.get("quantization", {})
    if found.get("compute") != "float32" or "int8_ms" not in found:
        return []
    return [
        f"Weights are stored in 8 bits and products computed in float32: on this CPU a text takes "
        f"{found['float32_ms']:.2f} ms so, and {found['int8_ms']:.2f} ms with products of integers."
    ]


def in_float(figures: Mapping[str, Any]) -> list[str]:
    """Said where accuracy control took parts back to float32."""
    found: Mapping[str, Any] = figures.get("quantization", {})
    if not found.get("floats"):
        return []
    some = "this part computes" if len(found["floats"]) == 1 else "these parts compute"
    return [
        f"{found['bits']} bits would have cost too much on valid, so {some} in float32, products from "
        f"weights of {found['floats_stored']} bits: {', '.join(found['floats'])} "
        f"({found['score']:.4f}, all in float32 {found['score_float']:.4f})."
    ]


def unpacked(figures: Mapping[str, Any]) -> list[str]:
    """Said where what ships is not what runs."""
    if "unpacked_bytes" not in figures:
        return []
    return [
        f"Ships as model.pocket of {figures['size_bytes'] / 1e6:.2f} MB; graph and tokenizer take "
        f"{figures['unpacked_bytes'] / 1e6:.2f} MB unpacked, in memory as for other runtimes."
    ]


def slower(ratios: Mapping[str, Any]) -> list[str]:
    """Said where the stopwatch does not show a speed-up."""
    if ratios["faster_x"]["low"] > 1:
        return []
    size = "Smaller to store" if ratios["smaller_x"] > 1 else "Not smaller"
    return [f"{size}, not faster here: the speed-up over the teacher is not certain to be above 1."]
