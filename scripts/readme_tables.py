"""Rewrite the tables of README.md and docs/ from benchmarks/results, so that no number is typed.

A block

    <!-- table:demo -->
    <!-- /table -->

is filled from `benchmarks/results/demo.jsonl`: a line for each (teacher, row, kind, method, task), the
median over its seeds, and the smallest and largest value behind it. A block of `means` has a line for each
(teacher, row) that was distilled, over its tasks; one of `parts` has the scores that stand beside a task's
headline; one of `ablation` has a recipe of `distill.jsonl`, such as `tinybert`, and what it is without each
of its parts; one of `sparse` has a study of `prune.jsonl`, such as `decoder`. Results are only ever
appended, so of a seed measured twice the newest line counts, and lines of an older recipe than the newest
line's do not. What a clock says is a median over those of the newest line's machine alone.

    python scripts/readme_tables.py            rewrite
    python scripts/readme_tables.py --check    exit with 1 if a block is stale
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from pocketlm.report.svg import points, size_score_picture
from pocketlm.report.units import PERCENT_METRICS

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- (table|means|parts|sparse|ablation):([\w-]+) -->\n)(.*?)(<!-- /\2 -->)", re.DOTALL)
DISTILLED = ("pocket", "paper-recipe")
KINDS = ("teacher", "pocket", "control", "peer", "paper-recipe")
PARTS = {"in_scope_accuracy": "in scope alone", "intent_accuracy": "intent", "span_f1": "slot F1"}

CLOCKED = ("p50_ms", "faster_x", "faster_x_eager_torch", "make_minutes", "energy_wh")
"""What is another on another machine; a score is not, but for rounding."""

PICTURE = Path("docs/demo.svg")
PICTURE_SIZE = (880, 420)
PICTURED = ("size_bytes", "score", "score_low", "score_high", "p50_ms")

Line = Mapping[str, Any]
Key = tuple[str, str, str, str, str]


def read_results(path: Path) -> list[Line]:
    """The lines of one results file, oldest first; none if the file does not exist.

    Raises:
        SystemExit: a line is not JSON.
    """
    if not path.exists():
        return []
    lines: list[Line] = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            raise SystemExit(f"{path}:{number} is not JSON ({error.msg}); mend the line by hand") from error
    return lines


def current(lines: Sequence[Line]) -> dict[Key, list[Line]]:
    """Group by (teacher, row, kind, method, task); within a group the newest line of each seed.

    Lines of another recipe than the newest line of the group are left out: a median over two recipes
    describes neither.
    """
    groups: dict[Key, list[Line]] = {}
    for line in lines:
        key = (line["teacher"], line["row"], line["kind"], line["method"], line["task"])
        groups.setdefault(key, []).append(line)
    for key, group in groups.items():
        recipe = newest(group)["recipe_sha256"]
        alike = [line for line in group if line["recipe_sha256"] == recipe]
        by_seed = {line["seed"]: line for line in sorted(alike, key=lambda line: line["when"])}
        groups[key] = [by_seed[seed] for seed in sorted(by_seed)]
    return dict(sorted(groups.items(), key=lambda item: _order(item[0])))


def newest(group: Sequence[Line]) -> Line:
    """The line that was measured last."""
    return max(group, key=lambda line: line["when"])


def clocked(group: Sequence[Line]) -> list[Line]:
    """The lines of the newest one's machine."""
    last = newest(group)
    return [line for line in group if all(line[name] == last[name] for name in ("machine", "isa"))]


def values(group: Sequence[Line], name: str) -> list[float]:
    """A figure of a group's lines, where it was measured."""
    lines = clocked(group) if name in CLOCKED else group
    return [line[name] for line in lines if line[name] is not None]


def _order(key: Key) -> tuple[str, str, int]:
    teacher, _, kind, _, task = key
    return teacher, task, KINDS.index(kind)


def spread(found: Sequence[float | None], show: Callable[[float], str]) -> str:
    """The median, with the smallest and the largest value behind it where they read differently."""
    known = [value for value in found if value is not None]
    if not known:
        return "–"
    low, middle, high = show(min(known)), show(median(known)), show(max(known))
    return middle if low == high else f"{middle} ({low} to {high})"


def score(group: Sequence[Line]) -> str:
    """The median score and, of the same test rows, the median ends of its confidence interval."""
    factor, digits = (100, 1) if group[0]["metric"] in PERCENT_METRICS else (1, 3)

    def middle(name: str) -> float | None:
        known = values(group, name)
        return median(known) * factor if known else None

    value, low, high = middle("score"), middle("score_low"), middle("score_high")
    if value is None:
        return "–"
    interval = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{interval}"


def significant(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 4.56, 78.9, 1234."""
    digits = 2
    size = abs(value)
    while size >= 10 and digits:
        size /= 10
        digits -= 1
    while 0 < size < 1 and digits < 6:
        size *= 10
        digits += 1
    return f"{value:.{digits}f}"


def label(key: Key) -> str:
    """What the line is, in one cell."""
    _, row, kind, method, _ = key
    name = row if method in ("", row) else f"{row}, {method}"
    return f"**{name}**" if kind == "pocket" else f"{name} ({kind})" if kind not in name else name


def table(lines: Sequence[Line]) -> str:
    """A Markdown table with a line below it that says where the figures come from."""
    if not lines:
        return "*Not measured yet.*\n"
    groups = current(lines)
    # What tells lines apart: the teacher, the task, both or neither.
    told = [place for place in (0, 4) if len({key[place] for key in groups}) > 1]
    metrics = {group[0]["metric"] for group in groups.values()}
    head = [
        *("teacher" if place == 0 else "task" for place in told),
        "model",
        "size, MB",
        "smaller",
        "p50, ms",
        "faster, same runtime",
        "faster, eager PyTorch",
        f"{metrics.pop() if len(metrics) == 1 else 'score'} [interval]",
        "retention",
        "minutes",
        "Wh",
    ]
    words = len(told) + 1
    rows = [head, [*["---"] * words, *["---:"] * (len(head) - words)]]
    for key, group in groups.items():
        rows.append([*(key[place] for place in told), *_cells(key, group)])
    return f"{_markdown(rows)}\n{source(groups)}\n"


def means(lines: Sequence[Line]) -> str:
    """A Markdown table of what every distilled row keeps on the mean over its tasks, and at what price."""
    if not lines:
        return "*Not measured yet.*\n"
    by_row: dict[tuple[str, str], list[Sequence[Line]]] = {}
    for (teacher, row, kind, _, _), group in current(lines).items():
        if kind in DISTILLED:
            by_row.setdefault((teacher, row), []).append(group)
    head = ["teacher", "row", "tasks", "mean retention", "least", "MB", "smaller", "faster", "minutes", "Wh"]
    rows = [head, [*["---"] * 3, *["---:"] * 7]]
    for (teacher, row), groups in by_row.items():
        kept = {str(group[0]["task"]): _median(group, "retention_pct") or 0.0 for group in groups}
        least = min(kept, key=lambda task: kept[task])

        def over(name: str, groups: Sequence[Sequence[Line]] = groups) -> str:
            return spread([_median(group, name) for group in groups], significant)

        mean = sum(kept.values()) / len(kept)
        rows.append(
            [teacher, row, str(len(kept)), f"{mean:.1f} %", f"{kept[least]:.1f} % ({least})"]
            + [spread([(_median(group, "size_bytes") or 0) / 1e6 for group in groups], significant)]
            + [over(name) for name in ("smaller_x", "faster_x", "make_minutes", "energy_wh")]
        )
    return _markdown(rows) + "\n"


def parts(lines: Sequence[Line]) -> str:
    """A Markdown table of further scores, in percent, where a task has some that belong to its own."""
    head = ["teacher", "task", "model", "score", *PARTS.values()]
    rows = [head, [*["---"] * 3, *["---:"] * (len(head) - 3)]]
    for key, group in current(lines).items():
        if key[2] == "control" or not PARTS.keys() & group[0]["other_metrics"].keys():
            continue
        of_parts = [spread([line["other_metrics"].get(name) for line in group], _percent) for name in PARTS]
        rows.append(
            [key[0], key[4], label(key), spread([line["score"] for line in group], _percent), *of_parts]
        )
    if len(rows) == 2:
        return "*Not measured yet.*\n"
    return _markdown(rows) + "\n"


def ablation(lines: Sequence[Line], name: str) -> str:
    """A Markdown table of a recipe, and of it without one part after the other, on the same tasks."""
    groups = {key: group for key, group in current(lines).items() if key[1].split(", no ")[0] == name}
    without = {key: group for key, group in groups.items() if key[1] != name}
    if not without:
        return "*Not measured yet.*\n"
    tasks = {key[4] for key in without}
    rows = [["recipe", "task", "score [interval]", "retention", "minutes"], [*["---"] * 2, *["---:"] * 3]]
    for key, group in groups.items():
        if key[1] == name and key[4] in tasks:
            rows.append([name, *_ablated(key, group)])
    rows += [[key[1].removeprefix(f"{name}, "), *_ablated(key, group)] for key, group in without.items()]
    return f"{_markdown(rows)}\n{source(without)}\n"


def _ablated(key: Key, group: Sequence[Line]) -> list[str]:
    kept = spread(values(group, "retention_pct"), lambda value: f"{value:.1f} %")
    return [key[4], score(group), kept, spread(values(group, "make_minutes"), significant)]


def sparse(lines: Sequence[Line]) -> str:
    """A Markdown table of a study of single weights: the score at every sparsity."""
    if not lines:
        return "*Not measured yet.*\n"
    head = ["network", "task", "what", "sparsity", "score", "seeds"]
    rows = [head, [*["---"] * 3, *["---:"] * 3]]
    for (network, row, _, _, task), group in current(lines).items():
        metric = group[0]["metric"]
        measured = spread(values(group, "score"), _percent if metric in PERCENT_METRICS else significant)
        removed = spread(values(group, "sparsity"), lambda value: f"{value:.0%}")
        # What is measured once at every sparsity has it in its name, too.
        what = re.sub(r", [\d.]+%$", "", row.partition(": ")[2])
        rows.append([network, task, what, removed, f"{measured} {metric}", str(len(group))])
    return _markdown(rows) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _cells(key: Key, group: Sequence[Line]) -> list[str]:
    def of(name: str, show: Callable[[float], str] = significant) -> str:
        return spread(values(group, name), show)

    def times(value: float) -> str:
        return f"{significant(value)}x"

    return [
        label(key),
        of("size_bytes", lambda value: significant(value / 1e6)),
        of("smaller_x", times),
        of("p50_ms"),
        of("faster_x", times),
        of("faster_x_eager_torch", times),
        score(group),
        of("retention_pct", lambda value: f"{value:.1f} %"),
        of("make_minutes", lambda value: f"{value:.1f}"),
        of("energy_wh"),
    ]


def source(groups: Mapping[Key, Sequence[Line]]) -> str:
    """Seeds, machine, threads, energy method and commit of the lines behind a table."""
    lines = [line for group in groups.values() for line in group]

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(line[name]) for line in lines if line[name] is not None})) or "unknown"

    machines = sorted({f"{line['machine']} ({', '.join(line['isa'])})" for line in lines})
    seeds = max(len(group) for group in groups.values())
    behind = "One seed" if seeds == 1 else f"Median of up to {seeds} seeds (smallest to largest)"
    mixed = any(len(clocked(group)) < len(group) for group in groups.values())
    places = "; ".join(machines) + ("; times of the newest line's machine alone" if mixed else "")
    return (
        f"*{behind} on the {all_of('split')} split; {places}; {all_of('threads')} threads; "
        f"energy: {all_of('energy_method')}; "
        f"commit {', '.join(sorted({str(line['commit'])[:9] for line in lines}))}.*"
    )


def fill(text: str, results: Path) -> str:
    """The text with every table block made anew."""

    def of(bench: str) -> list[Line]:
        return read_results(results / f"{bench}.jsonl")

    makers: dict[str, Callable[[str], str]] = {
        "table": lambda name: table(of(name)),
        "means": lambda name: means(of(name)),
        "parts": lambda name: parts(of(name)),
        "ablation": lambda name: ablation(of("distill"), name),
        "sparse": lambda name: sparse(
            [line for line in of("prune") if str(line["row"]).startswith(f"{name}: ")]
        ),
    }

    def made(block: re.Match[str]) -> str:
        return f"{block[1]}{makers[block[2]](block[3])}{block[5]}"

    return BLOCK.sub(made, text)


def picture(lines: Sequence[Line]) -> str:
    """Size against score of every model, medians over seeds, as an SVG file that stands alone."""
    rows = [
        {"label": group[0]["method"], "kind": key[1], **{name: _median(group, name) for name in PICTURED}}
        for key, group in current(lines).items()
    ]
    style = resources.files("pocketlm").joinpath("report/style.css").read_text(encoding="utf-8")
    svg = size_score_picture(points({"rows": rows}), lines[0]["metric"], *PICTURE_SIZE)
    opening, _, rest = svg.partition(">")
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{opening}><style>\n{style}</style>{rest}\n"


def _median(group: Sequence[Line], name: str) -> float | None:
    known = values(group, name)
    return median(known) if known else None


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Rewrite or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only look; exit with 1 if a block is stale")
    check: bool = parser.parse_args(arguments).check
    stale: list[Path] = []
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        before = page.read_text(encoding="utf-8")
        after = fill(before, root / "benchmarks" / "results")
        if after != before:
            stale.append(page.relative_to(root))
            if not check:
                page.write_text(after, encoding="utf-8")
    drawing, lines = root / PICTURE, read_results(root / "benchmarks" / "results" / "demo.jsonl")
    if lines and (not drawing.exists() or drawing.read_text(encoding="utf-8") != picture(lines)):
        stale.append(PICTURE)
        if not check:
            drawing.write_text(picture(lines), encoding="utf-8")
    for page in stale:
        print(f"{page}: {'stale; run: make tables' if check else 'rewritten'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
