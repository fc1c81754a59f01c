"""The stage that turns the user's file or folder into three prepared splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketlm.artifact import Artifact
from pocketlm.data.columns import (
    Columns,
    are_lists,
    encode_labels,
    find_columns,
    infer_task,
    label_name,
    unknown,
)
from pocketlm.data.examples import Examples, save_texts
from pocketlm.data.folder import find_splits, read_split
from pocketlm.data.read import Row, Table, Value
from pocketlm.data.split import check_fraction, cut, sample
from pocketlm.data.unlabeled import new_texts, normalised, read_unlabeled
from pocketlm.data.word_labels import ends_are_tagged, in_bio, items, joined, read_answer, read_tags
from pocketlm.errors import DataError, RecipeError, storage_errors
from pocketlm.progress import Progress
from pocketlm.stage import Context
from pocketlm.tasks.metrics import true_tags
from pocketlm.tasks.task import Kind, Task
from pocketlm.tasks.transitions import count_transitions

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Prepare:
    """Read, check, cut and encode the user's data.

    Reads the part `train_source`, a file or a folder, and, if there, the files `valid_source` and
    `test_source`, which win over the folder's. A missing test or valid split is cut from train, test
    first. Adds the part `data`, a folder with `train.jsonl`, `valid.jsonl`, `test.jsonl` and, where there
    is a part `unlabeled_source`, `unlabeled.jsonl` with those of its texts that no split has; and the
    figures `task`, `columns`, `rows`, `dropped` (rows of each file that were left out, and why),
    `overlap` (rows of valid and test whose text also occurs in train) and, where words have tags,
    `unknown` (intents and tags of valid and test that train lacks: no model can be right there).

    Args:
        text: One text column, or two for pairs; empty finds them by name. Of words with tags, the column
            of tokens: a JSON list or a string with white space between them.
        label: The label column; None finds it by name.
        tags: The column of tags of a joint task; None finds it by name.
        separator: Between several labels of an example, where they are not a JSON list.
        group: Column whose equal values stay on one side of a cut (a film, an author); None groups
            rows with the same text.
        kind: None infers it from the columns and labels of the train file.
        stratify: Cut within each label.
        keep: Labels to keep; rows with another are dropped. Empty keeps all.
        valid_fraction: Share of the groups of the train file that a missing valid split takes.
        test_fraction: The same for test.
        train_rows: At most so many training rows, chosen by the hash of their text; None takes all.
        split_seed: Another seed cuts and samples other rows.
    """

    text: tuple[str, ...] = ()
    label: str | None = None
    tags: str | None = None
    separator: str = "|"
    group: str | None = None
    kind: Kind | None = None
    stratify: bool = False
    keep: tuple[str, ...] = ()
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    train_rows: int | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_fraction("valid_fraction", self.valid_fraction)
        check_fraction("test_fraction", self.test_fraction)
        if self.valid_fraction + self.test_fraction >= 1:
            raise RecipeError(
                f"valid_fraction={self.valid_fraction} and test_fraction={self.test_fraction} leave nothing "
                "to train on; allowed: a sum of less than 1"
            )
        if self.train_rows is not None and self.train_rows < 2:
            raise RecipeError(
                f"train_rows={self.train_rows} is out of range; allowed: 2 or more, or null for all"
            )
        if self.kind not in (None, "classification") and (self.keep or self.stratify):
            raise RecipeError(f"keep and stratify are for classes; leave them out where kind is {self.kind}")
        if not self.separator:
            raise RecipeError("separator='' cuts nothing; give the sign between two labels, such as '|'")

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Prepare the splits below `context.folder`.

        Raises:
            DataError: a file, column, row or label is not usable.
            MissingExtraError: a Parquet file, and pyarrow is not installed.
            StorageError: the splits cannot be written.
        """
        sources = _sources(artifact.parts)
        tables = {split: read_split(paths) for split, paths in sources.items()}
        train_table = tables["train"]
        columns = find_columns(
            train_table.columns, train_table.rows, self.text, self.label, where=train_table.source,
            kind=self.kind, tags=self.tags,
        )  # fmt: skip
        loaded = {split: self._rows(split, table, columns) for split, table in tables.items()}
        dropped = {split: counts for split, (_, counts) in loaded.items()}
        rows = {split: kept for split, (kept, _) in loaded.items()}
        _say_dropped(dropped, context.progress)
        if columns.kind in ("tokens", "joint"):
            rows = _in_bio(rows, context.progress)

        pair = len(columns.text) == 2
        whole = rows["train"]
        kind = self.kind or columns.kind or ("multilabel" if are_lists(whole.labels) else None)
        if kind == "multilabel":
            rows = {split: kept.with_lists(self.separator) for split, kept in rows.items()}
        kind = self._task(rows["train"], pair, kind).kind
        if kind == "regression" and self.stratify:
            raise DataError(
                f"{whole.where}: stratify needs classes, and these labels are numbers; leave it out"
            )
        if kind != "classification" and (self.stratify or self.keep):
            raise DataError(
                f"{whole.where}: stratify and keep need one class a row, not {kind}; leave them out"
            )
        rows = self._cut_missing(rows, train_table)
        task = self._task(rows["train"], pair, kind)
        if self.train_rows is not None:
            rows["train"] = self._sampled(rows["train"], self.train_rows, task)
        examples = {split: rows[split].encoded(task) for split in SPLITS}
        if task.tags:
            sequences = true_tags(task, examples["train"].labels)
            task = replace(task, transitions=count_transitions(task, sequences))
        overlap = {split: _overlap(examples[split], examples["train"]) for split in ("valid", "test")}
        for split, count in overlap.items():
            if count:
                context.progress.say(f"{split}: {count} of {len(examples[split])} texts also occur in train")

        missing = {split: unknown(task, examples[split].labels) for split in ("valid", "test")}
        for split, lacking in missing.items():
            for what, count in lacking.items():
                if count:
                    context.progress.say(f"{split}: {count} {what} do not occur in train and count as wrong")
        counts = {split: len(examples[split]) for split in SPLITS}
        unlabeled = None
        if (source := artifact.parts.get("unlabeled_source")) is not None:
            known = [texts for split in SPLITS for texts in examples[split].texts]
            unlabeled, dropped["unlabeled"] = _unlabeled(source, columns.text, known, context.progress)
            counts["unlabeled"] = len(unlabeled)

        with storage_errors(context.folder):
            context.folder.mkdir(parents=True, exist_ok=True)
            for split in SPLITS:
                examples[split].save(context.folder / f"{split}.jsonl")
            if unlabeled is not None:
                save_texts(unlabeled, context.folder / "unlabeled.jsonl")
        return artifact.with_part("data", context.folder).with_figures(
            task=task.to_dict(),
            columns={
                "text": list(columns.text),
                "label": columns.label,
                **({"tags": columns.tags} if columns.tags else {}),
            },
            rows=counts,
            dropped=dropped,
            overlap=overlap,
            **({"unknown": missing} if task.tags else {}),
        )

    def _rows(self, split: str, table: Table, columns: Columns) -> tuple[_Rows, dict[str, int]]:
        """The usable rows of a table, and how many were dropped for which reason."""
        if split != "train":
            columns = find_columns(
                table.columns, table.rows, columns.text, columns.label, where=table.source,
                kind=columns.kind, tags=columns.tags,
            )  # fmt: skip
        where = f"{split} ({table.source})"
        dropped = {"empty_text": 0, "other_label": 0}
        if columns.kind == "qa":
            dropped["no_answer"] = 0
        numbers: list[int] = []
        texts: list[tuple[str, ...]] = []
        labels: list[Any] = []
        for number, row in enumerate(table.rows, start=1):
            values, label = _example(row, columns, f"{where}, row {number}")
            if self.keep and label_name(row[columns.label]) not in self.keep:
                dropped["other_label"] += 1
            elif not all(value.strip() for value in values):
                dropped["empty_text"] += 1
            elif columns.kind == "qa" and label is None:
                dropped["no_answer"] += 1
            else:
                numbers.append(number)
                texts.append(values)
                labels.append(label)
        if split == "train":
            self._check_keep(where, labels, table, columns.label)
        if not numbers:
            raise DataError(
                f"{where}: no row with a text is left of {len(table.rows)}; check the text column"
            )
        return _Rows(where, numbers, texts, labels), dropped

    def _check_keep(self, where: str, kept: Sequence[Value], table: Table, label: str) -> None:
        missing = sorted(set(self.keep) - {label_name(value) for value in kept})
        if missing:
            known = sorted({label_name(row[label]) or "" for row in table.rows} - {""})
            raise DataError(
                f"{where}: keep names {missing[0]!r}, which labels no row; found: {', '.join(known[:10])}"
            )

    def _task(self, rows: _Rows, pair: bool, kind: Kind | None) -> Task:
        return infer_task(rows.labels, pair, kind, where=rows.where, numbers=rows.numbers)

    def _cut_missing(self, rows: Mapping[str, _Rows], train_table: Table) -> dict[str, _Rows]:
        """Cut test, then valid, from train where they are not given; fractions are of the train file."""
        splits = dict(rows)
        left = 1.0
        for split, fraction in (("test", self.test_fraction), ("valid", self.valid_fraction)):
            if split in splits:
                continue
            train = splits["train"]
            keys = self._keys(train, train_table)
            strata = [label_name(label) or "" for label in train.labels] if self.stratify else None
            held = cut(keys, fraction / left, self.split_seed, strata)
            splits[split] = train.take(
                [place for place, out in enumerate(held) if out], f"{split} (cut from {train_table.source})"
            )
            splits["train"] = train.take([place for place, out in enumerate(held) if not out], train.where)
            left -= fraction
        return splits

    def _keys(self, rows: _Rows, table: Table) -> list[str]:
        if self.group is None:
            return rows.keys
        if self.group not in table.columns:
            raise DataError(
                f"{table.source}: group {self.group!r}: there is no such column; "
                f"found: {', '.join(table.columns)}"
            )
        groups: list[str] = []
        for number in rows.numbers:
            name = label_name(table.rows[number - 1][self.group])
            if name is None:
                raise DataError(
                    f"{table.source}, row {number}: no value in the group column {self.group!r}; "
                    "fill it in, or leave the group out"
                )
            groups.append(name)
        return groups

    def _sampled(self, train: _Rows, count: int, task: Task) -> _Rows:
        chosen = train.take(sample(train.keys, count, self.split_seed), train.where)
        if len({repr(label) for label in chosen.encoded(task).labels}) < 2:
            raise DataError(
                f"{train.where}: the sample of train_rows={count} has one label only; take more rows"
            )
        return chosen


@dataclass(frozen=True)
class _Rows:
    """Usable rows of one split, in parallel lists; `numbers` count the rows of the file from 1."""

    where: str
    numbers: list[int]
    texts: list[tuple[str, ...]]
    labels: list[Any]

    @property
    def keys(self) -> list[str]:
        return ["\n".join(texts) for texts in self.texts]

    def take(self, places: Sequence[int], where: str) -> _Rows:
        return _Rows(
            where,
            [self.numbers[place] for place in places],
            [self.texts[place] for place in places],
            [self.labels[place] for place in places],
        )

    @property
    def tags(self) -> list[list[str]]:
        """Those of rows that have some: they are the label, or stand in it beside an intent."""
        return [label["tags"] if isinstance(label, dict) else label for label in self.labels]

    def with_tags(self, named: Callable[[str], str]) -> _Rows:
        """Every tag by another name."""
        rows = [[named(tag) for tag in row] for row in self.tags]
        pairs = zip(self.labels, rows, strict=True)
        return replace(
            self, labels=[{**label, "tags": row} if isinstance(label, dict) else row for label, row in pairs]
        )

    def with_lists(self, separator: str) -> _Rows:
        """Each label as the list of names that it spells."""
        return replace(self, labels=[items(label, separator) for label in self.labels])

    def encoded(self, task: Task) -> Examples:
        return Examples(self.texts, encode_labels(self.labels, task, self.where, self.numbers))


def _sources(parts: Mapping[str, Path]) -> dict[str, tuple[Path, ...]]:
    """The files of each split: those given alone before those of the folder."""
    train = parts["train_source"]
    sources = find_splits(train) if train.is_dir() else {"train": (train,)}
    given = {split: (parts[f"{split}_source"],) for split in ("valid", "test") if f"{split}_source" in parts}
    return {**sources, **given}


def _example(row: Row, columns: Columns, where: str) -> tuple[tuple[str, ...], Any]:
    """Texts and raw label of a row; the label of a question without an answer is None."""
    if columns.kind in ("tokens", "joint"):
        tokens = items(row[columns.text[0]])
        tags = read_tags(row[columns.tags or columns.label], tokens, where)
        label = {"intent": row[columns.label], "tags": tags} if columns.tags else tags
        return (joined(tokens, where),), label
    texts = tuple(_text(row[column]) for column in columns.text)
    if columns.kind == "qa" and all(text.strip() for text in texts):
        return texts, read_answer(row, columns.label, columns.start, texts[1], where)
    return texts, row[columns.label]


def _unlabeled(
    source: Path, columns: Sequence[str], known: Sequence[tuple[str, ...]], progress: Progress
) -> tuple[list[tuple[str, ...]], dict[str, int]]:
    read = read_unlabeled(source, columns)
    texts, dropped = new_texts(read, known)
    progress.say(
        f"unlabeled: {len(texts)} of {len(read)} texts are new ({dropped['empty_text']} are empty, "
        f"{dropped['in_a_split']} occur in train, valid or test, {dropped['repeated']} are repeated)"
    )
    if not texts:
        raise DataError(
            f"unlabeled ({source.name}): none of its {len(read)} texts is new: {dropped['empty_text']} are "
            f"empty, {dropped['in_a_split']} occur in train, valid or test; give other texts, or none"
        )
    return texts, dropped


def _text(value: Value) -> str:
    return "" if value is None else str(value)


def _in_bio(rows: Mapping[str, _Rows], progress: Progress) -> Mapping[str, _Rows]:
    if not ends_are_tagged({tag for row in rows["train"].tags for tag in row}):
        return rows
    progress.say("the tags also tell the last word of a span (BIOES, BILOU); they are read as B and I")
    return {split: kept.with_tags(in_bio) for split, kept in rows.items()}


def _say_dropped(dropped: Mapping[str, Mapping[str, int]], progress: Progress) -> None:
    for split, counts in dropped.items():
        if counts["empty_text"]:
            progress.say(f"{split}: dropped {counts['empty_text']} rows without a text")
        if counts.get("no_answer"):
            progress.say(f"{split}: dropped {counts['no_answer']} questions without an answer")
        if counts["other_label"]:
            progress.say(f"{split}: dropped {counts['other_label']} rows whose label is not one to keep")


def _overlap(examples: Examples, train: Examples) -> int:
    seen = {normalised(texts) for texts in train.texts}
    return sum(normalised(texts) in seen for texts in examples.texts)
