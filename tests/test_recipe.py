"""Recipes: every key is known or the nearest is named, every value is checked before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pocketlm import recipe as recipes
from pocketlm.cli import main
from pocketlm.errors import RecipeError
from pocketlm.recipe import (
    NEEDS_TEACHER_OUTPUTS,
    ONE_OF,
    OPTIONAL,
    STAGES,
    Recipe,
    demo,
    parse,
    read,
    resolve,
    setting,
)
from pocketlm.verbs.quantize import METHODS
from tests.conftest import Made, Tiny
from tests.easy import QUICK

BASE: dict[str, Any] = {"teacher": "a-folder", "data": "rows.tsv"}
DEFAULT = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in read(None)["stages"]]
# All that one recipe may hold: one way of three to quantize the graph.
TOGETHER = [name for name in STAGES if name not in ONE_OF[1:]]
EVERY: dict[str, Any] = {"stages": TOGETHER}
FIELDS = [(name, field.name) for name in TOGETHER for field in dataclasses.fields(STAGES[name])]


def stage(recipe: Recipe, name: str) -> Any:
    return next(stage for stage in recipe.stages if type(stage) is STAGES[name])


def message(values: dict[str, Any], overrides: Any = ()) -> str:
    with pytest.raises(RecipeError) as raised:
        resolve({**BASE, **values}, overrides)
    return str(raised.value)


# What is there


def test_the_default_has_every_needed_stage_in_order() -> None:
    names = [recipes.STAGE_NAMES[type(stage)] for stage in resolve(BASE).stages]
    assert names == DEFAULT == [name for name in STAGES if name in DEFAULT]
    assert {*DEFAULT} >= {*STAGES} - {*OPTIONAL}


def test_the_demo_resolves_to_the_default_with_its_own_columns() -> None:
    shown, plain = resolve(demo()), resolve({**demo(), "set": {}})
    assert shown.teacher.startswith("pypi:") and shown.data.train.startswith("pypi:")
    assert shown.stages[1:] == plain.stages[1:]
    assert stage(shown, "prepare").group == "movie_name"


@pytest.mark.parametrize("missing", ["teacher", "data"])
@pytest.mark.parametrize("value", [None, "", {}])
def test_a_recipe_without_a_teacher_or_data_says_which(missing: str, value: Any) -> None:
    assert f"the recipe names no {missing}" in message({missing: value})


def test_data_may_be_a_path_or_several() -> None:
    assert resolve({**BASE, "data": "x.tsv"}).data == recipes.DataSources("x.tsv")
    given = {"train": "a", "valid": "b", "test": "c", "corpus": "d", "unlabeled": "e"}
    assert dataclasses.asdict(resolve({**BASE, "data": given}).data) == given


# Seeds


def test_the_seed_reaches_every_stage_that_has_one() -> None:
    seeded = [name for name, field in FIELDS if field == "seed"]
    assert len(seeded) >= 3
    recipe = resolve({**BASE, **EVERY, "seed": 7})
    assert {stage(recipe, name).seed for name in seeded} == {7}


def test_a_stage_may_have_a_seed_of_its_own() -> None:
    recipe = resolve({**BASE, "seed": 7}, [("distill", "seed", 3)])
    assert (stage(recipe, "distill").seed, stage(recipe, "finetune").seed) == (3, 7)
    again = resolve(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe


def test_another_seed_for_a_recipe_that_a_pocket_carries_reaches_its_stages() -> None:
    carried = yaml.safe_load(resolve({**BASE, "seed": 0}).to_yaml())
    recipe = resolve({**carried, "seed": 5})
    assert stage(recipe, "finetune").seed == stage(recipe, "distill").seed == 5


# Unknown keys


@given(st.data())
@settings(deadline=None)
def test_a_key_with_a_typing_error_is_told_the_right_one(data: st.DataObject) -> None:
    name, field = data.draw(st.sampled_from([pair for pair in FIELDS if len(pair[1]) > 4]))
    place = data.draw(st.integers(0, len(field) - 1))
    wrong = data.draw(
        st.sampled_from(
            [field[:place] + field[place + 1 :], field[:place] + "q" + field[place:], field + "s"]
        ).filter(lambda wrong: wrong not in {known for _, known in FIELDS})
    )
    told = message({**EVERY, "set": {name: {wrong: 1}}})
    assert f"unknown key {wrong!r}" in told and f"did you mean {field!r}?" in told


@pytest.mark.parametrize(
    ("values", "overrides", "near"),
    [
        ({"techer": "x"}, (), "teacher"),
        ({"stage": []}, (), "stages"),
        ({"data": {"train": "x", "vaild": "y"}}, (), "valid"),
        ({"stages": ["prepare", "fine-tune"]}, (), "finetune"),
        ({"stages": [{"prepare": {"lable": "x"}}]}, (), "prepare"),
        ({"set": {"distil": {"epochs": 1}}}, (), "distill"),
        ({"set": {"distill": {"epoch": 1}}}, (), "epochs"),
        ({}, [("mesure", "rounds", 1)], "measure"),
        ({}, [("measure", "round", 1)], "rounds"),
        ({1: 2}, (), "teacher"),
    ],
)
def test_an_unknown_key_at_any_level_names_the_nearest(values: Any, overrides: Any, near: str) -> None:
    told = message(values, overrides)
    assert ("unknown key" in told and "known: " in told) or "cannot run in a row" in told
    assert near in told


# Wrong values


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (("finetune", "epochs", "many"), "stage finetune: epochs='many'"),
        (("finetune", "epochs", 1.5), "stage finetune: epochs=1.5"),
        (("distill", "epochs", None), "stage distill: epochs=None"),
        (("finetune", "epochs", 0), "stage finetune: epochs=0 is out of range; it must be above 0"),
        (("finetune", "learning_rate", float("nan")), "stage finetune: learning_rate=nan is out of range"),
        (("distill", "learning_rate", float("inf")), "stage distill: learning_rate=inf is out of range"),
        (("distill", "batch_size", -1), "stage distill: batch_size=-1 is out of range"),
        (("distill", "temperature", 0), "the temperature above 0"),
        (("distill", "seed", -1), "stage distill: seed=-1"),
        (("controls", "epochs", 0), "stage controls: epochs=0"),
        (("controls", "enabled", "maybe"), "stage controls: enabled='maybe'"),
        (("finetune", "mode", "maybe"), "'auto', 'always' or 'never'"),
        (("finetune", "precision", "fp8"), "'auto', 'fp32' or 'bf16'"),
        (("finetune", "max_length", 2), "max_length=2 leaves no room for text; allowed: 8 or more"),
        (("finetune", "dropout", 1), "dropout=1.0 is out of range"),
        (("finetune", "warmup", 1), "warmup=1.0 is out of range"),
        (("measure", "rounds", 0), "stage measure: rounds=0 is out of range; it must be 1 or more"),
        (("measure", "batches", 0), "stage measure: batches=0"),
        (("prepare", "text", "review"), "stage prepare: text='review'"),
        (("prepare", "kind", "ranking"), "'tokens', 'joint' or 'qa'"),
        (("prepare", "valid_fraction", 1.0), "valid_fraction=1.0"),
        (("student", "layers", "three"), "stage student: layers"),
        (("student", "layers", [1, "x"]), "stage student: layers"),
    ],
)
def test_a_value_out_of_type_or_range_is_told_before_any_work(override: Any, told: str) -> None:
    assert told in message({}, [override])


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"seed": "x"}, "seed: 'x' is not a whole number"),
        ({"seed": True}, "seed: True is not a whole number"),
        ({"seed": 1.0}, "seed: 1.0 is not a whole number"),
        ({"seed": -3}, "seed=-3 is out of range"),
        ({"revision": 1.5}, "revision: 1.5 is not a text"),
        ({"start": 3}, "start: 3 is not a text; name a model as `teacher` does"),
        ({"data": 5}, "data: train=5"),
        ({"data": {"valid": "x.tsv"}}, "data: train is missing"),
        ({"data": {"train": ["a", "b"]}}, "data: train=['a', 'b']"),
        ({"stages": {}}, "stages: give a list"),
        ({"stages": "prepare"}, "stages: give a list"),
        ({"stages": [{"prepare": {}, "finetune": {}}]}, "is not one stage name with its fields"),
        ({"stages": [{"prepare": ["text"]}]}, "the fields of prepare are ['text']"),
        ({"set": ["distill"]}, "is not of the form `set: {stage: {field: value}}`"),
        ({"set": {"distill": 3}}, "is not of the form `set: {stage: {field: value}}`"),
    ],
)
def test_a_part_of_another_form_is_told_the_right_one(values: dict[str, Any], told: str) -> None:
    assert told in message(values)


# Which stages, in which order


@pytest.mark.parametrize("left_out", [name for name in STAGES if name not in OPTIONAL])
def test_a_recipe_without_a_stage_that_others_need_is_refused(left_out: str) -> None:
    # subwords makes a student of its own.
    told = message({"stages": [name for name in TOGETHER if name not in (left_out, "subwords")]})
    assert "cannot run in a row" in told and left_out in told.split("; give ")[1]


@pytest.mark.parametrize(
    "left_out",
    [
        ("int8",),
        ("distill",),
        ("tinybert",),
        ("student",),
        ("teacher_outputs", *NEEDS_TEACHER_OUTPUTS),
        OPTIONAL,
    ],
)
def test_some_stages_may_be_left_out(left_out: tuple[str, ...]) -> None:
    names = [name for name in TOGETHER if name not in left_out]
    assert len(resolve({**BASE, "stages": names}).stages) == len(names)


@pytest.mark.parametrize("name", ONE_OF)
def test_one_of_three_quantizes_the_graph(name: str) -> None:
    names = [other for other in STAGES if other == name or other not in ONE_OF]
    assert len(resolve({**BASE, "stages": names}).stages) == len(names)
    other = next(other for other in ONE_OF if other != name)
    told = message({"stages": [one for one in STAGES if one in names or one == other]})
    assert "only one of int8, static_int8, weight_only" in told


def test_stages_out_of_order_or_twice_are_refused() -> None:
    names = TOGETHER
    assert "cannot run in a row" in message({"stages": [names[1], names[0], *names[2:]]})
    assert "cannot run in a row" in message({"stages": [*names, names[-1]]})
    assert "teacher_outputs" in message({"stages": [name for name in names if name != "teacher_outputs"]})


def test_logits_alone_may_be_asked_for_before_there_is_a_student() -> None:
    names: list[Any] = [name for name in TOGETHER if name not in ("subwords", "teacher_outputs", "tinybert")]
    place = names.index("student")
    early = [*names[:place], {"teacher_outputs": {"states": []}}, *names[place:]]
    assert len(resolve({**BASE, "stages": early}).stages) == len(early)
    for states in (None, [0, 1]):
        early[place] = {"teacher_outputs": {"states": states}}
        assert "cannot run in a row" in message({"stages": early})


# Settings


def test_settings_win_over_the_set_of_a_recipe_and_that_over_its_stages() -> None:
    stages = [{"finetune": {"epochs": 2}} if name == "finetune" else name for name in TOGETHER]
    values = {**BASE, "stages": stages}
    assert stage(resolve(values), "finetune").epochs == 2
    values["set"] = {"finetune": {"epochs": 4}}
    assert stage(resolve(values), "finetune").epochs == 4
    assert stage(resolve(values, [setting("finetune.epochs=6")]), "finetune").epochs == 6


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("distill.epochs=3", ("distill", "epochs", 3)),
        ("student.layers=[1, 3]", ("student", "layers", [1, 3])),
        ("student.vocabulary=null", ("student", "vocabulary", None)),
        ("prepare.label=a=b", ("prepare", "label", "a=b")),
        ("prepare.label='1'", ("prepare", "label", "1")),
        ("prepare.keep=[fresh, rotten]", ("prepare", "keep", ["fresh", "rotten"])),
        ("prepare.group=", ("prepare", "group", None)),
        ("controls.enabled=false", ("controls", "enabled", False)),
    ],
)
def test_a_setting_is_a_stage_a_field_and_yaml(text: str, override: Any) -> None:
    assert setting(text) == override


def test_a_learning_rate_may_be_written_as_people_write_it() -> None:
    # YAML takes `1e-4` for a text; it wants `1.0e-4`.
    assert stage(resolve(BASE, [setting("distill.learning_rate=1e-4")]), "distill").learning_rate == 1e-4


@pytest.mark.parametrize("text", ["", "distill", "distill.epochs", "epochs=3", "=3", "distill.epochs=[1"])
def test_a_setting_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="--set"):
        setting(text)


# There and back

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "prepare.label": st.text(min_size=1, max_size=12)
    | st.sampled_from(["no", "1", "1e5", "null", "~", "a: b"]),
    "prepare.text": st.lists(st.text(min_size=1, max_size=5), max_size=2),
    "prepare.keep": st.lists(st.sampled_from(["yes", "no", "1", "é", " x ", "#"]), max_size=3),
    "prepare.valid_fraction": st.floats(0.01, 0.4),
    "finetune.learning_rate": st.floats(1e-9, 1.0),
    "finetune.patience": st.none() | st.integers(1, 9),
    "student.layers": st.integers(1, 9) | st.lists(st.integers(0, 20), min_size=1, max_size=5),
    "teacher_outputs.states": st.none() | st.lists(st.integers(0, 12), max_size=5),
    "distill.layer_map": st.none() | st.lists(st.integers(0, 12), max_size=5),
    "distill.seed": st.integers(0, 2**32 - 1),
    "controls.enabled": st.booleans(),
}


@given(
    st.fixed_dictionaries({}, optional=VALUES),
    st.integers(0, 2**32 - 1),
    st.text(min_size=1, max_size=30),
    st.none() | st.text(max_size=9),
)
@example({}, 0, "\x85", "\u2028 a\u2029")
@settings(deadline=None)
def test_a_written_recipe_reads_back_as_itself(
    changes: dict[str, Any], seed: int, train: str, revision: str | None
) -> None:
    overrides = [(*key.split("."), value) for key, value in changes.items()]
    values = {"teacher": "t", "data": train, "seed": seed, "revision": revision, "start": revision}
    recipe = resolve(values, overrides)
    again = resolve(parse(recipe.to_yaml(), "it"))
    assert again == recipe
    assert again.sha256 == recipe.sha256


def test_a_recipe_spells_out_every_field() -> None:
    written = yaml.safe_load(resolve({**BASE, **EVERY}).to_yaml())
    spelled = {
        (name, field) for entry in written["stages"] for name, fields in entry.items() for field in fields
    }
    assert spelled == {(name, field) for name, field in FIELDS if field != "seed"}
    assert written["seed"] == 0


def test_two_recipes_that_differ_have_different_hashes() -> None:
    recipes = [resolve(BASE), *(resolve(BASE, [override]) for override in QUICK)]
    assert len({recipe.sha256 for recipe in recipes}) == len({repr(recipe.stages) for recipe in recipes}) > 8


# Files


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "its top is NoneType"),
        (b"- a\n", "its top is list"),
        (b"a: [1", "is not YAML"),
        (b"\xff\xfe", "cannot read the recipe"),
        (b"a: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=told) as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        read(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", recipes.packaged_names())
def test_a_packaged_recipe_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = read(Path(name))
    assert found == recipes.packaged(name)
    assert resolve({**BASE, **found, **BASE}).stages
    # A file of one's own under that name wins.
    Path(name).write_text("seed: 5\n", encoding="utf-8")
    assert read(Path(name)) == {"seed": 5}


def test_operating_points_and_the_papers_methods_are_packaged() -> None:
    named = {"default", "smaller", "from-base", "from-base-smaller", "demo"}
    papers = {"distilbert", "relations", "subwords", "tinybert"}
    pruned = {"magnitude", "movement", "obd", "structured"}
    assert named | papers | pruned | {*METHODS} == {*recipes.packaged_names()}


def test_an_unknown_recipe_is_told_the_names() -> None:
    with pytest.raises(RecipeError) as error:
        read(Path("tinybrt"))
    assert "cannot read the recipe tinybrt" in str(error.value)
    assert f"or one of the names {', '.join(recipes.packaged_names())}" in str(error.value)


@pytest.mark.parametrize("name", ["tinybert", "distill"])
def test_distillation_needs_the_teachers_outputs(name: str) -> None:
    without = [one for one in DEFAULT if one not in ("teacher_outputs", "distill")]
    names = [one for one in STAGES if one in without or one == name]
    assert (
        "tinybert, structured, distill, magnitude, movement, obd, qat, share need teacher_outputs"
        in message({"stages": names})
    )


def test_a_budget_of_time_needs_what_parts_take() -> None:
    names = [one for one in STAGES if one in {*DEFAULT, "structured"}]
    assert "a budget of time needs latency" in message({"stages": names})
    in_bytes = {"structured": {"speedup": None, "max_size_mb": 1.0}}
    assert resolve({**BASE, "stages": [in_bytes if one == "structured" else one for one in names]}).stages


BRIEF = {
    "tinybert": (
        *(("augment", "masked_lm_steps", 1), ("augment", "most", 20)),
        *(("student", "hidden_size", 16), ("student", "heads", 2)),
        *(("tinybert_general", "epochs", 1), ("tinybert", "epochs_intermediate", 1)),
    ),
    "relations": (("relations", "epochs", 1), ("distill", "epochs", 1)),
    "distilbert": (("distill", "epochs", 1),),
}


@pytest.fixture(scope="module")
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", BRIEF)
def test_the_papers_methods_run(one_cache: Path, tiny: Tiny, name: str) -> None:
    """From a teacher without a head to a distilled student."""
    from pocketlm.pipeline import run
    from pocketlm.verbs.shrink import resolved_recipe

    overrides = [one for one in QUICK if one[0] in ("finetune", "student")]
    overrides += BRIEF[name]
    recipe = resolved_recipe(str(tiny.teacher), str(tiny.data), recipe=Path(name), overrides=overrides)
    artifact, _ = run(recipe, one_cache, until="tinybert" if name == "tinybert" else "distill")
    assert artifact.figures["distil"]["curve"]
    assert artifact.parts["student"] != artifact.parts["untrained_student"]


# `pocketlm recipe show`


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["recipe", "show", *map(str, arguments)])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_show_prints_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys) == resolve(demo()).to_yaml()


def test_show_prints_what_shrink_would_do(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("set: {distill: {epochs: 9}}\n")
    printed = shown(
        capsys, path, "--teacher", "t", "--data", "d", "--seed", "4", "--set", "finetune.epochs=1"
    )
    overrides = [("finetune", "epochs", 1)]
    wanted = resolve({"teacher": "t", "data": "d", "seed": 4, "set": {"distill": {"epochs": 9}}}, overrides)
    assert printed == wanted.to_yaml()


def test_show_prints_the_recipe_of_a_pocket(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    printed = shown(capsys, made.pocket)
    assert printed == made.info["recipe"]
    recipe = resolve(parse(printed, "it"))
    assert recipe.sha256 == made.info["recipe_sha256"]
    assert [repr(stage) for stage in recipe.stages] == made.info["history"]


def test_show_applies_a_seed_to_the_recipe_of_a_pocket(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = resolve(parse(shown(capsys, made.pocket, "--seed", "11"), "it"))
    assert recipe.seed == stage(recipe, "finetune").seed == stage(recipe, "distill").seed == 11
