"""Rules of the house that no tool checks: what a file of this repository may hold."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LARGEST_BYTES = 5_000_000

# Built from pieces, so that this file passes its own test.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (("pypi", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"), ("npmjs", "org"))
)
MACHINE_PATH = re.compile(
    r"(?<![\w.~$}/])/(?:" + "|".join(("work", "root", "home", "Users", "opt")) + r")/\w"
)

# The schema of a results line; missing figures are null, never absent and never guessed.
NUMBERS = {
    *("seed", "teacher_score", "score", "score_low", "score_high", "retention_pct"),
    *("parameters", "teacher_parameters", "size_bytes", "teacher_size_bytes", "smaller_x", "sparsity"),
    *("p50_ms", "teacher_p50_ms", "faster_x", "faster_x_eager_torch", "tokens_p50", "threads"),
    *("make_minutes", "energy_wh"),
}
WORDS = {
    *("bench", "row", "kind", "method", "teacher", "task", "split", "metric"),
    *("energy_method", "commit", "recipe_sha256", "machine", "when"),
}
OTHERS = {"sparsity_of", "versions"}
# What a line may say besides.
FURTHER_NUMBERS = {
    "examples",
    "p95_ms",
    "throughput_per_s",
    "ram_bytes",
    "start_ms",
    "run_minutes",
    "unpacked_bytes",
}
FURTHER_OTHERS = {"other_metrics", "faster_x_spread", "isa", "structure", "quantization", "zeros"}
CHOICES = {
    "kind": {"pocket", "teacher", "control", "peer", "paper-recipe"},
    "energy_method": {"rapl", "tdp", "none"},
    "sparsity_of": {None, "embeddings in", "embeddings out"},
}


def repository_files() -> list[Path]:
    """Tracked files and new ones that git would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def foreign(text: str) -> list[str]:
    """Registry hosts and absolute paths of a machine in a text."""
    hosts = [host for host in REGISTRY_HOSTS if host in text]
    return hosts + [match.group() for match in MACHINE_PATH.finditer(text)]


def faults(line: str) -> list[str]:
    """What is wrong with a results line."""
    values = json.loads(line)
    found = [f"missing {name}" for name in sorted((NUMBERS | WORDS | OTHERS) - values.keys())]
    known = NUMBERS | WORDS | OTHERS | FURTHER_NUMBERS | FURTHER_OTHERS
    found += [f"unknown {name}" for name in sorted(values.keys() - known)]
    for name, value in values.items():
        number = name in NUMBERS | FURTHER_NUMBERS
        if number and (isinstance(value, bool) or not isinstance(value, int | float | None)):
            found.append(f"{name} is {value!r}, not a number or null")
        if name in WORDS and not isinstance(value, str):
            found.append(f"{name} is {value!r}, not a text")
        if name in CHOICES and value not in CHOICES[name]:
            found.append(f"{name} is {value!r}, not one of {sorted(map(str, CHOICES[name]))}")
    return found


def test_no_file_names_this_machine_or_a_registry() -> None:
    found: dict[str, list[str]] = {}
    for path in repository_files():
        content = path.read_bytes()
        if b"\0" not in content and (names := foreign(content.decode("utf-8"))):
            found[str(path.relative_to(ROOT))] = names
    assert not found


def test_the_search_sees_what_it_should() -> None:
    host = "https://" + REGISTRY_HOSTS[0] + "/simple"
    assert foreign(host) == [REGISTRY_HOSTS[0]]
    path = "/".join(("", "home", "someone", "x"))
    assert foreign(f"open('{path}')") and foreign(path)
    assert foreign("an example.org/home/page, ./job/out and $HOME/opt/bin") == []


def test_no_large_file() -> None:
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in repository_files()}
    assert sizes
    assert not {name: size for name, size in sizes.items() if size > LARGEST_BYTES}


def test_every_module_says_what_it_is_for() -> None:
    modules = sorted((ROOT / "src" / "pocketlm").rglob("*.py"))
    assert modules
    silent = [
        str(module.relative_to(ROOT))
        for module in modules
        if not ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_results_follow_the_schema() -> None:
    wrong: dict[str, list[str]] = {}
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if found := faults(line):
                wrong[f"{path.name}:{number}"] = found
            elif json.loads(line)["bench"] != path.stem:
                wrong[f"{path.name}:{number}"] = ["bench is not the name of its file"]
    assert not wrong


def test_a_wrong_line_is_told() -> None:
    good = (
        {name: 1 for name in NUMBERS} | {name: "x" for name in WORDS} | {"versions": {}, "sparsity_of": None}
    )
    good |= {"kind": "pocket", "energy_method": "tdp"}
    assert faults(json.dumps(good)) == []
    assert faults(json.dumps(good | {"p50_ms": None})) == []
    assert faults(json.dumps(good | {"p50_ms": "fast"})) == ["p50_ms is 'fast', not a number or null"]
    assert faults(json.dumps(good | {"speed": 1})) == ["unknown speed"]
    assert faults(json.dumps(good | {"ram_bytes": 1, "isa": ["avx2"]})) == []
    assert faults(json.dumps(good | {"ram_bytes": "much"})) == ["ram_bytes is 'much', not a number or null"]
    del good["seed"]
    assert faults(json.dumps(good)) == ["missing seed"]


def test_contributors_read_the_house_that_the_contract_holds() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    held = [layer for layer in contract["layers"] if not layer.startswith("(")]
    below_cli = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("    cli\n")[1]
    told = re.findall(r"^    (\S.*?)(?:   .*)?$", below_cli, re.MULTILINE)
    assert ["cli", *told[: len(held) - 1]] == [re.sub(r" \| \(\w+\)", "", layer) for layer in held]
