from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

import pocketlm.runtime.pocket as runtime
from pocketlm.errors import InputError, PocketError
from pocketlm.runtime import Pocket, Prediction, load
from pocketlm.runtime.pocket import physical_cores, session
from pocketlm.tasks.task import Task

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "quiet", "triumph", "dull", "film", "##s", "of", "the"]
SINGLE = Task("classification", pair=False, labels=("rotten", "fresh", "neither"))
PAIR = Task("classification", pair=True, labels=("no", "yes"))
VALUE = Task("regression", pair=True)
ALL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def tables(outputs: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    shapes = {"words": (len(WORDS), 4), "types": (2, 4), "head": (4, outputs)}
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_graph(path: Path, outputs: int, inputs: tuple[str, ...], output: str = "logits") -> None:
    """Mean of the word (and type) embeddings under the mask (or over everything), times the head."""
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["h0"])]
    hidden = "h0"
    if "token_type_ids" in inputs:
        nodes += [
            helper.make_node("Gather", ["types", "token_type_ids"], ["ht"]),
            helper.make_node("Add", ["h0", "ht"], ["h1"]),
        ]
        hidden = "h1"
    if "attention_mask" in inputs:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "two"], ["m3"]),
            helper.make_node("Mul", [hidden, "m3"], ["masked"]),
            helper.make_node("ReduceSum", ["masked", "one"], ["sum"], keepdims=0),
            helper.make_node("ReduceSum", ["m", "one"], ["count"], keepdims=1),
            helper.make_node("Div", ["sum", "count"], ["mean"]),
        ]
    else:
        nodes += [helper.make_node("ReduceMean", [hidden, "one"], ["mean"], keepdims=0)]
    nodes += [helper.make_node("MatMul", ["mean", "head"], [output])]
    constants = tables(outputs) | {"one": np.array([1]), "two": np.array([2])}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_tokenizer(path: Path, padding: bool = True) -> None:
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    # As teachers ship it: their own padding and truncation, which a pocket has to replace.
    tokenizer.enable_truncation(512)
    if padding:
        tokenizer.enable_padding(length=32, pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(path))


def listed(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}


def write_pocket(folder: Path, task: Task, inputs: tuple[str, ...] = ALL_INPUTS, /, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_graph(folder / "model.onnx", task.outputs, inputs)
    write_tokenizer(folder / "tokenizer.json")
    write_manifest(folder, task, **changes)
    return folder


def write_manifest(folder: Path, task: Task, /, **changes: Any) -> None:
    info = {
        "format": 1,
        "name": "tiny",
        "task": task.to_dict(),
        "max_length": 8,
        "files": {name: listed(folder / name) for name in ("model.onnx", "tokenizer.json")},
        "licence": "Apache-2.0",
    } | changes
    (folder / "pocket.json").write_text(json.dumps(info), encoding="utf-8")


@pytest.fixture
def pocket(tmp_path: Path) -> Pocket:
    return load(write_pocket(tmp_path / "reviews", SINGLE))


def expected(pocket: Pocket, texts: list[Any]) -> np.ndarray:
    weights = tables(pocket.task.outputs)
    rows = []
    for encoding in pocket.encode(texts):
        hidden = weights["words"][encoding.ids] + weights["types"][encoding.type_ids]
        rows.append(hidden.mean(axis=0) @ weights["head"])
    return np.array(rows)


def test_describes_itself(pocket: Pocket) -> None:
    assert (pocket.name, pocket.task, pocket.max_length) == ("tiny", SINGLE, 8)
    assert pocket.labels == ("rotten", "fresh", "neither")
    assert pocket.info["licence"] == "Apache-2.0"


def test_logits_are_the_graph_on_each_text_alone(pocket: Pocket) -> None:
    texts = ["a quiet triumph", "dull", "the films of the film", "", "unheard of"]
    logits = pocket.logits(texts, batch_size=2)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(pocket, texts), rtol=1e-5, atol=1e-6)


# The pocket does not change between examples.
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["film", "dull", "a", "x"]), max_size=9).map(" ".join), max_size=12
    ),
    batch_size=st.integers(1, 13),
)
def test_batching_and_padding_change_nothing(pocket: Pocket, texts: list[str], batch_size: int) -> None:
    alone = pocket.logits(texts, batch_size=1)
    assert alone.shape == (len(texts), 3)
    np.testing.assert_allclose(pocket.logits(texts, batch_size), alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pocket.logits(texts[::-1], batch_size)[::-1], alone, rtol=1e-5, atol=1e-6)


def test_a_small_pocket_runs_as_many_batches_at_a_time_as_it_has_threads(tmp_path: Path) -> None:
    folder = write_pocket(tmp_path, SINGLE)
    both, one = load(folder, threads=2), load(folder, threads=1)
    texts = ["a quiet film " * (n % 5) for n in range(40)]
    session, meeting, sizes = both._session, threading.Barrier(2, timeout=20), []

    class Meeting:
        def run(self, outputs, feed):
            sizes.append(len(feed["input_ids"]))
            meeting.wait()  # passes only where two runs are under way
            return session.run(outputs, feed)

    both._session = Meeting()  # type: ignore[assignment]
    np.testing.assert_allclose(both.logits(texts), one.logits(texts), rtol=1e-5, atol=1e-6)
    assert sizes == [20, 20]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked on this system")
def test_a_forked_process_gets_threads_of_its_own(tmp_path: Path) -> None:
    shared = load(write_pocket(tmp_path, SINGLE), threads=2)
    texts = ["a quiet triumph"] * 64
    wanted = shared.logits(texts)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # one that waits for threads that it has not got is killed
        os._exit(0 if np.array_equal(shared.logits(texts), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_large_pocket_answers_one_batch_with_all_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_pocket(tmp_path, SINGLE)
    threads = {}
    for limit in (0, 10**9):
        monkeypatch.setattr(runtime, "ONE_THREAD_BYTES", limit)
        options: Any = load(folder, threads=3)._session.get_session_options()  # type: ignore[attr-defined]
        threads[limit] = options.intra_op_num_threads
    assert threads == {0: 3, 10**9: 1}


def test_a_pair_carries_its_types(tmp_path: Path) -> None:
    pocket = load(write_pocket(tmp_path, PAIR))
    texts = [("a film", "dull"), ("dull", "a film"), ("the quiet film", "a")]
    np.testing.assert_allclose(pocket.logits(texts), expected(pocket, texts), rtol=1e-5, atol=1e-6)
    assert pocket.encode(texts)[0].type_ids == [0, 0, 0, 0, 1, 1]
    forth, back = pocket.logits(texts)[:2]
    assert not np.allclose(forth, back)


@pytest.mark.parametrize("inputs", [("input_ids", "attention_mask"), ("attention_mask", "input_ids")])
def test_feeds_only_what_the_graph_asks_for(tmp_path: Path, inputs: tuple[str, ...]) -> None:
    pocket = load(write_pocket(tmp_path, SINGLE, inputs))
    weights = tables(3)
    ids = pocket.encode(["a quiet triumph"])[0].ids
    np.testing.assert_allclose(
        pocket.logits(["a quiet triumph", "dull"])[0],
        weights["words"][ids].mean(axis=0) @ weights["head"],
        rtol=1e-5,
    )


def test_truncates_to_max_length_from_the_longer_text(tmp_path: Path) -> None:
    encoding = load(write_pocket(tmp_path, PAIR)).encode([("a", "film " * 50)])[0]
    assert encoding.tokens == ["[CLS]", "a", "[SEP]", *["film"] * 4, "[SEP]"]


def test_encodings_are_not_padded(pocket: Pocket) -> None:
    assert [len(encoding) for encoding in pocket.encode(["a", "a quiet film"])] == [3, 5]


@pytest.mark.parametrize("padding", [True, False])
def test_pads_with_the_tokenizers_own_token(tmp_path: Path, padding: bool) -> None:
    # This graph has no mask: padding shows in its mean, and there it has to be token 0.
    write_graph(tmp_path / "model.onnx", 3, ("input_ids",))
    write_tokenizer(tmp_path / "tokenizer.json", padding)
    write_manifest(tmp_path, SINGLE)
    pocket = load(tmp_path)
    ids = [*pocket.encode(["a"])[0].ids, 0]
    weights = tables(3)
    np.testing.assert_allclose(
        pocket.logits(["a", "quiet film"])[0], weights["words"][ids].mean(axis=0) @ weights["head"], rtol=1e-5
    )


def test_no_texts_give_no_rows(pocket: Pocket) -> None:
    assert pocket.logits([]).shape == (0, 3)
    assert pocket.predict([]) == []


def test_predicts_the_best_label_with_its_probability(pocket: Pocket) -> None:
    texts = ["a quiet triumph", "dull"]
    logits = expected(pocket, texts)
    for row, prediction in zip(logits, pocket.predict(texts), strict=True):
        assert prediction.scores is not None
        assert tuple(prediction.scores) == SINGLE.labels
        assert sum(prediction.scores.values()) == pytest.approx(1)
        assert prediction.label == SINGLE.labels[row.argmax()]
        assert prediction.score == max(prediction.scores.values())
        probabilities = np.exp(row) / np.exp(row).sum()
        np.testing.assert_allclose(list(prediction.scores.values()), probabilities, rtol=1e-5)


def test_a_regression_predicts_the_value(tmp_path: Path) -> None:
    pocket = load(write_pocket(tmp_path, VALUE))
    texts = [("a film", "the film")]
    assert pocket.predict(texts) == [Prediction(None, float(pocket.logits(texts)[0, 0]), None)]


def test_threads_share_a_pocket(pocket: Pocket) -> None:
    texts = [["a quiet triumph", "dull films"], ["film"], ["of the film", "", "a"]] * 20
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(pocket.logits, texts))
    for given_texts, result in zip(texts, results, strict=True):
        np.testing.assert_allclose(result, expected(pocket, given_texts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a film", r'one string, \'a film\'; pass a list: \["a text"\]'),
        ([("a", "b")], r"texts\[0\] is \('a', 'b'\); pass a string"),
        (["a", None], r"texts\[1\] is a NoneType; pass a string"),
        (["a", b"film"], r"texts\[1\] is a bytes; pass a string"),
        (["\ud800"], r"texts\[0\] is not valid Unicode at character 0.*errors='replace'"),
    ],
)
def test_single_texts_are_checked(pocket: Pocket, texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pocket.logits(texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a film", r'one string, .* pass a list: \[\("a text", "another text"\)\]'),
        (
            ["a film"],
            r"texts\[0\] is 'a film'; pass \(\"a text\", \"another text\"\): this pocket compares two",
        ),
        (("a", "b"), r"texts\[0\] is 'a'; pass \(\"a text\", \"another text\"\)"),
        ([("a", "b"), ("a", "b", "c")], r"texts\[1\] is \('a', 'b', 'c'\); pass"),
        ([("a", 1.5)], r"texts\[0\] is \('a', 1.5\); pass"),
    ],
)
def test_pairs_are_checked(tmp_path: Path, texts: Any, message: str) -> None:
    pocket = load(write_pocket(tmp_path, PAIR))
    with pytest.raises(InputError, match=message):
        pocket.predict(texts)


def test_counts_below_one_are_refused(pocket: Pocket, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch_size=0 is not usable; give 1 or more"):
        pocket.logits(["a"], batch_size=0)
    with pytest.raises(InputError, match="threads=0 is not usable"):
        load(tmp_path / "reviews", threads=0)


def test_threads_reach_onnxruntime(tmp_path: Path) -> None:
    folder = write_pocket(tmp_path, SINGLE)
    options: Any = session(folder / "model.onnx", threads=3).get_session_options()  # type: ignore[attr-defined]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    options = session(folder / "model.onnx").get_session_options()  # type: ignore[attr-defined]
    assert options.intra_op_num_threads == physical_cores() >= 1


def entry(**changes: Any) -> dict[str, Any]:
    good = {"sha256": "0" * 64, "size_bytes": 1}
    return {"model.onnx": good | changes, "tokenizer.json": good}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "made by a newer pocketlm; upgrade with: pip install --upgrade pocketlm"),
        ({"format": "1"}, "format='1' is not a format number"),
        ({"format": True}, "format=True is not a format number"),
        ({"name": None}, "name=None is not a name"),
        ({"task": ["classification"]}, "task must be an object, not a list"),
        (
            {"task": {"kind": "parsing", "pair": False, "labels": []}},
            "allowed kinds: classification, regression",
        ),
        ({"task": SINGLE.to_dict() | {"labels": ["a", "a", "b"]}}, "two or more different labels"),
        (
            {"task": SINGLE.to_dict() | {"labels": ["a", "b"]}},
            r"logits of shape \['batch', 3\].*\[batch, 2\]",
        ),
        ({"max_length": 12.5}, "max_length=12.5 is not a number of tokens"),
        ({"max_length": 2}, "max_length=2 leaves no room for text beside 2 special tokens"),
        ({"files": []}, "files must be an object, not a list"),
        ({"files": {"tokenizer.json": entry()["tokenizer.json"]}}, "does not list model.onnx"),
        ({"files": entry(sha256=1)}, r"files\['model.onnx'\] must be an object with sha256"),
        ({"files": entry(size_bytes=-1)}, r"files\['model.onnx'\] must be an object with sha256"),
        ({"files": entry() | {"../model.onnx": {}}}, r"lists the file '\.\./model.onnx'; allowed are plain"),
        ({"files": entry() | {"a\\b": {}}}, "allowed are plain names inside the folder"),
        ({"files": entry() | {"/etc/passwd": {}}}, "allowed are plain names inside the folder"),
        ({"files": entry() | {"..": {}}}, "allowed are plain names inside the folder"),
        ({"files": entry() | {"c:x": {}}}, "allowed are plain names inside the folder"),
    ],
)
def test_a_broken_manifest_is_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PocketError, match=message):
        load(write_pocket(tmp_path, SINGLE, **changes))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, r"is missing; copy the whole folder again, or make it again with: pocketlm shrink"),
        (cut, r"has [\d,]+ bytes and should have [\d,]+: cut short or replaced; copy the whole"),
        (flip, r"has sha256 \w{12}… and should have \w{12}…: damaged or replaced; copy the whole"),
    ],
)
def test_a_damaged_file_is_told(
    tmp_path: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    folder = write_pocket(tmp_path, SINGLE)
    damage(folder / name)
    with pytest.raises(PocketError, match=f"{name} {message}"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'["format"]', "must hold a JSON object, not a list"),
        (b"{}", "format=None is not a format number"),
    ],
)
def test_broken_json_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "pocket.json").write_bytes(content)
    with pytest.raises(PocketError, match=message):
        load(tmp_path)


def test_a_folder_that_is_no_pocket_is_told(tmp_path: Path) -> None:
    with pytest.raises(PocketError, match=r"is not a pocket: it has no pocket.json; copy the whole folder"):
        load(str(tmp_path))
    with pytest.raises(PocketError, match="is not a folder; name the folder that pocketlm shrink wrote"):
        load(tmp_path / "absent")
    (tmp_path / "pocket.json").mkdir()
    with pytest.raises(PocketError, match=r"cannot read .*pocket.json: "):
        load(tmp_path)


def test_unverified_files_are_opened_and_their_reader_speaks(tmp_path: Path) -> None:
    folder = write_pocket(tmp_path, SINGLE)
    whole = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(b"x" * len(whole))
    with pytest.raises(PocketError, match="not readable by this version of tokenizers"):
        load(folder, verify=False)
    (folder / "tokenizer.json").write_bytes(whole)
    (folder / "model.onnx").write_bytes(b"x" * (folder / "model.onnx").stat().st_size)
    with pytest.raises(
        PocketError, match=r"onnxruntime [\d.]+ cannot open .*pip install --upgrade onnxruntime"
    ):
        load(folder, verify=False)


def test_a_graph_with_other_ends_is_told(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    write_graph(tmp_path / "model.onnx", 3, ALL_INPUTS, output="scores")
    write_manifest(tmp_path, SINGLE)
    with pytest.raises(PocketError, match=r"returns \['scores'\]; it must return 'logits'"):
        load(tmp_path)
    model = onnx.load(str(tmp_path / "model.onnx"))
    model.graph.output[0].name = model.graph.node[-1].output[0] = "logits"
    model.graph.input[2].name = model.graph.node[1].input[1] = "segments"
    onnx.save(model, str(tmp_path / "model.onnx"))
    write_manifest(tmp_path, SINGLE)
    with pytest.raises(PocketError, match=r"asks for \['segments'\]; known are \['input_ids'"):
        load(tmp_path)


def test_a_tokenizer_of_another_pocket_is_told(tmp_path: Path) -> None:
    folder = write_pocket(tmp_path, SINGLE)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["unheard"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_manifest(folder, SINGLE)
    with pytest.raises(PocketError, match=r"fails on its own tokens: .* may come from two pockets"):
        load(folder).logits(["unheard"])


def test_a_tokenizer_without_padding_token_is_told(tmp_path: Path) -> None:
    folder = write_pocket(tmp_path, SINGLE)
    Tokenizer(WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    write_manifest(folder, SINGLE)
    with pytest.raises(PocketError, match=r"no padding section and neither \[PAD\] nor <pad>"):
        load(folder)


def test_runs_without_torch_and_transformers(tmp_path: Path) -> None:
    folder = write_pocket(tmp_path, SINGLE)
    program = (
        "import sys; sys.path[:] = sys.argv[2:]\n"
        "from pocketlm.runtime.pocket import load\n"
        "print(load(sys.argv[1]).predict(['a quiet triumph'])[0].label)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}\n"
        "             & {'torch', 'transformers', 'onnx', 'sklearn', 'scipy', 'rich'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *sys.path], capture_output=True, text=True, check=True
    )
    label, heavy = done.stdout.splitlines()
    assert label in SINGLE.labels
    assert heavy == "[]"
