"""Open a pocket folder and predict from text.

A pocket keeps what the runtime needs in three files: `pocket.json` (task, labels, checksums), `model.onnx`
and `tokenizer.json`. The graph takes some of `input_ids`, `attention_mask` and `token_type_ids`
(int64 [batch, length]) and returns `logits` (float32 [batch, outputs]), `word_logits` (float32 [batch,
length, word_outputs]; the first piece of a word speaks for it), or both, as the task asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from pocketlm.errors import InputError, PocketError
from pocketlm.runtime.coded import Coded, read_coded
from pocketlm.runtime.manifest import MEND, MODEL, TOKENIZER, check_files, described, read_info
from pocketlm.runtime.prediction import Prediction, Span, predictions, softmax
from pocketlm.runtime.windows import Window, windows
from pocketlm.tasks.task import Task
from pocketlm.tasks.words import Text, WordLogits, WordSums, first_pieces, text_of_words

__all__ = ["Pocket", "Prediction", "Span", "load", "softmax"]

GRAPH_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
GRAPH_OUTPUT, WORD_OUTPUT = "logits", "word_logits"

# Measured up to 7 MB: on one text, a second thread costs more than it takes off the first.
ONE_THREAD_BYTES = 8_000_000
# Fewer texts than this are not worth another worker.
SMALLEST_SHARE = 4
# ONNX Runtime's kernel for a sum and its LayerNorm takes five times as long as the two by themselves: half of
# the time of a model of two layers.
SLOW_FUSIONS = ("SkipLayerNormFusion",)

_ort: Any = onnxruntime  # it ships no types
_state: Any = _ort.capi.onnxruntime_pybind11_state
_ORT_ERRORS: tuple[type[Exception], ...] = (
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.NotImplemented,
    _state.RuntimeException,
)


class Node(Protocol):
    """An input or output of a graph: an unknown axis has a name or None in its shape."""

    name: str
    shape: list[int | str | None]


class Pieces(Protocol):
    """What we use of `tokenizers.Encoding`."""

    @property
    def ids(self) -> list[int]:
        """Piece ids."""
        ...

    @property
    def type_ids(self) -> list[int]:
        """Segment of every piece."""
        ...

    def __len__(self) -> int: ...


class Session(Protocol):
    """What we use of `onnxruntime.InferenceSession`."""

    def get_inputs(self) -> list[Node]:
        """The graph's inputs."""
        ...

    def get_outputs(self) -> list[Node]:
        """The graph's outputs."""
        ...

    def run(self, output_names: list[str], input_feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the graph; safe to call from several threads."""
        ...


class Pocket:
    """A model with its tokenizer and task, ready to predict. Safe to share between threads.

    Args:
        info: The content of `pocket.json`; of it `name`, `task` and `max_length` are used here.
        session: See `session`.
        tokenizer: Becomes the pocket's own: its truncation and padding are set here.
        workers: Batches that run at a time.

    Raises:
        PocketError: info, graph and tokenizer do not fit together.
    """

    def __init__(
        self, info: dict[str, Any], session: Session, tokenizer: Tokenizer, workers: int = 1
    ) -> None:
        self.info, self._workers = info, workers
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self.name, self.task, self.max_length = described(info)
        self._session = session
        self._inputs = _graph_inputs(session)
        self._pad_id = _pad_id(tokenizer)
        special = tokenizer.num_special_tokens_to_add(self.task.pair)
        if self.max_length <= special:
            raise PocketError(
                f"max_length={self.max_length} leaves no room for text beside {special} special tokens; "
                f"{MEND}"
            )
        tokenizer.no_padding()
        if self.task.kind == "qa":  # a long context is read in windows
            tokenizer.no_truncation()
        else:
            cast(Any, tokenizer).enable_truncation(self.max_length, strategy="longest_first")
        self._outputs = _graph_outputs(session, self.task)
        self._tokenizer = tokenizer

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the logits; empty for a regression."""
        return self.task.labels

    def __repr__(self) -> str:
        return f"Pocket(name={self.name!r}, task={self.task!r}, max_length={self.max_length})"

    def encode(self, texts: Sequence[Text]) -> list[Pieces]:
        """Tokenize, truncated to `max_length` tokens and not padded.

        Of a question with a long context, the first window.

        Args:
            texts: Strings, or pairs of strings where the task compares two texts.

        Raises:
            InputError: `texts` is not what the task takes.
        """
        checked = _checked_texts(texts, self.task.pair)
        if self.task.kind == "qa":
            return [own[0] for own in windows(self._tokenizer, cast(Any, checked), self.max_length)]
        return cast(list[Pieces], self._tokenizer.encode_batch(checked))

    def logits(self, texts: Sequence[Text], batch_size: int = 32) -> Any:
        """Run the model. Texts of like length share a batch, so that little of it is padding.

        Args:
            texts: Strings, or pairs of strings where the task compares two texts.
            batch_size: Examples in one run of the graph.

        Returns:
            float32 [examples, outputs], in the order of `texts`; where the task asks for words,
            `pocketlm.tasks.words.WordLogits`.

        Raises:
            InputError: `texts` is not what the task takes, or `batch_size` is below 1.
            PocketError: the graph and the tokenizer or the task do not belong together.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} is not usable; give 1 or more")
        if self.task.word_outputs:
            return self._word_logits(_checked_texts(texts, self.task.pair), batch_size)
        encodings = self.encode(texts)
        logits = np.empty((len(encodings), self.task.outputs), dtype=np.float32)
        for rows, (said,) in self._answers(encodings, batch_size):
            logits[rows] = said
        return logits

    def _word_logits(self, texts: Sequence[Text], batch_size: int) -> WordLogits:
        task = self.task
        examples = [(text,) if isinstance(text, str) else text for text in texts]
        sums, text_logits = WordSums(task, examples), np.zeros((len(texts), task.outputs), dtype=np.float32)
        if task.kind == "qa":
            cut = windows(self._tokenizer, cast(Any, texts), self.max_length)
        else:
            cut = [[_window(encoding)] for encoding in self._tokenizer.encode_batch(list(texts))]
        owners = [example for example, own in enumerate(cut) for _ in own]
        inputs = [window for own in cut for window in own]
        for rows, outputs in self._answers(inputs, batch_size):
            said = dict(zip(self._outputs, outputs, strict=True))
            if task.outputs:
                text_logits[rows] = said[GRAPH_OUTPUT]
            for row, of_pieces in zip(rows, said[WORD_OUTPUT], strict=True):
                example, one = owners[row], inputs[row]
                places = first_pieces(sums.words[example], text_of_words(task), one.origins, one.spans)
                sums.add(example, places, of_pieces)
        return sums.logits(text_logits)

    def predict(self, texts: Sequence[Text], batch_size: int = 32) -> list[Prediction]:
        """Say the label, the value, the labels, the spans or the answer of every example.

        Args:
            texts: Strings, or pairs of strings where the task compares two texts.
            batch_size: Examples in one run of the graph.

        Raises:
            InputError: `texts` is not what the task takes, or `batch_size` is below 1.
            PocketError: the graph and the tokenizer or the task do not belong together.

        Example:
            >>> load("pockets/reviews").predict(["a quiet triumph"])  # doctest: +SKIP
            [Prediction(label='fresh', score=0.98, scores={'rotten': 0.02, 'fresh': 0.98}, …)]
        """
        return predictions(self.task, self.logits(texts, batch_size))

    def _answers(
        self, inputs: Sequence[Pieces], batch_size: int
    ) -> Iterable[tuple[list[int], list[np.ndarray]]]:
        """Rows of a batch and what the graph says of them, for batch after batch."""
        share = max(SMALLEST_SHARE, -(-len(inputs) // self._workers))
        batches = _batches(inputs, min(batch_size, share))

        def run(rows: list[int]) -> list[np.ndarray]:
            return self._run([inputs[row] for row in rows])

        if len(batches) < 2 or self._workers == 1:
            return ((rows, run(rows)) for rows in batches)
        return list(zip(batches, self._threads().map(run, batches), strict=True))

    def _threads(self) -> ThreadPoolExecutor:
        """The workers' threads, which are kept; a process that was forked from another has none of its."""
        if self._pool is None or self._pool[0] != os.getpid():
            self._pool = os.getpid(), ThreadPoolExecutor(self._workers, thread_name_prefix="pocketlm")
        return self._pool[1]

    def _run(self, encodings: Sequence[Pieces]) -> list[np.ndarray]:
        padded = pad(encodings, self._pad_id)
        try:
            outputs = self._session.run(self._outputs, {name: padded[name] for name in self._inputs})
        except _ORT_ERRORS as error:
            raise PocketError(
                f"{MODEL} of pocket {self.name!r} fails on its own tokens: {error}; "
                f"model and tokenizer may come from two pockets; {MEND}"
            ) from error
        for name, output in zip(self._outputs, outputs, strict=True):
            wanted = (len(encodings), self.task.outputs)
            if name == WORD_OUTPUT:
                wanted = (*padded["input_ids"].shape, self.task.word_outputs)
            if output.shape != wanted:
                raise PocketError(_wrong_width(name, list(output.shape), self.task))
        return outputs


def load(folder: str | Path, threads: int | None = None, verify: bool = True) -> Pocket:
    """Open a pocket: a folder, or its one file.

    Args:
        folder: What `pocketlm shrink` wrote, or the `model.pocket` in it, by itself.
        threads: CPU threads; None takes every physical core. A large graph answers one batch with all of
            them; a small one, in which threads would wait for each other, as many batches at a time.
        verify: Compare the checksums of model and tokenizer, too; sizes are always compared.

    Raises:
        PocketError: the folder is missing, incomplete, damaged or from a newer pocketlm.
        InputError: `threads` is below 1.
    """
    folder, coded = Path(folder), None
    if folder.is_file():
        coded = read_coded(folder)
        info = coded.info
        size_bytes = len(coded.graph) + sum(tensor.nbytes for tensor in coded.tensors.values())
    else:
        info = read_info(folder)
        check_files(info, folder, verify)
        size_bytes = (folder / MODEL).stat().st_size
    path = folder if coded else folder / TOKENIZER
    try:
        tokenizer = Tokenizer.from_buffer(coded.tokenizer) if coded else Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception on a file it cannot read
        raise PocketError(
            f"{path} is not readable by this version of tokenizers: {error}; "
            f"upgrade with: pip install --upgrade tokenizers, or {MEND}"
        ) from error
    threads = physical_cores() if threads is None else threads
    each = threads_of_one(size_bytes, threads)
    opened = session(folder if coded else folder / MODEL, each, coded)
    return Pocket(info, opened, tokenizer, threads // each)


def threads_of_one(size_bytes: int, threads: int) -> int:
    """Threads that answer one batch of a graph of some size: all of a large one, one of a small one."""
    return threads if size_bytes > ONE_THREAD_BYTES else min(threads, 1)


def session(path: Path, threads: int | None = None, coded: Coded | None = None) -> Session:
    """Open an ONNX graph on the CPU.

    Args:
        path: The `.onnx` file, or where the coded one came from.
        threads: CPU threads of one run; None takes every physical core.
        coded: A graph that is in memory.

    Raises:
        PocketError: onnxruntime does not take the file.
        InputError: `threads` is below 1.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads={threads} is not usable; give 1 or more, or None for all physical cores")
    options = _ort.SessionOptions()
    options.intra_op_num_threads = physical_cores() if threads is None else threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: graph-optimizer warnings are nothing a user can act on
    # By default the workers spin on after a run. That takes the core from whoever comes next: the user's
    # own program, or the other model when two are timed in turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        if coded is not None:
            values = [_ort.OrtValue.ortvalue_from_numpy(tensor) for tensor in coded.tensors.values()]
            options.add_external_initializers(list(coded.tensors), values)
        return _ort.InferenceSession(
            coded.graph if coded else str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=list(SLOW_FUSIONS),
        )
    except _ORT_ERRORS as error:
        raise PocketError(
            f"onnxruntime {_ort.__version__} cannot open {path}: {error}; "
            f"upgrade with: pip install --upgrade onnxruntime, or {MEND}"
        ) from error


def physical_cores() -> int:
    """Physical cores this process may use; where the system does not tell, its logical processors."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in allowed]
    try:
        return len({path.read_text() for path in siblings})
    except OSError:
        return len(allowed)


def pad(encodings: Sequence[Pieces], pad_id: int) -> dict[str, np.ndarray]:
    """The graph inputs of one batch, as long as its longest example.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids`: int64 [batch, length].
    """
    # An empty text without special tokens has no token at all; the graph still wants a column.
    length = max(1, *(len(encoding) for encoding in encodings))
    shape = (len(encodings), length)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    token_type_ids = np.zeros(shape, dtype=np.int64)
    for row, encoding in enumerate(encodings):
        end = len(encoding)
        input_ids[row, :end] = encoding.ids
        attention_mask[row, :end] = 1
        token_type_ids[row, :end] = encoding.type_ids
    return dict(zip(GRAPH_INPUTS, (input_ids, attention_mask, token_type_ids), strict=True))


def _batches(inputs: Sequence[Pieces], batch_size: int) -> list[list[int]]:
    """Inputs of like length together."""
    order = sorted(range(len(inputs)), key=lambda row: len(inputs[row]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _window(encoding: Any) -> Window:
    origins = [-1 if text is None else text for text in encoding.sequence_ids]
    return Window(encoding.ids, encoding.type_ids, origins, encoding.offsets)


def _checked_texts(texts: Sequence[Text], pair: bool) -> list[Text]:
    if isinstance(texts, str):
        wanted = '[("a text", "another text")]' if pair else '["a text"]'
        raise InputError(f"got one string, {texts[:40]!r}; pass a list: {wanted}")
    return [_checked_text(row, text, pair) for row, text in enumerate(cast(Sequence[object], texts))]


def _checked_text(row: int, text: object, pair: bool) -> Text:
    parts = cast(tuple[object, ...], text) if isinstance(text, tuple) else (text,)
    strings = [part for part in parts if isinstance(part, str)]
    if len(strings) != len(parts) or len(parts) != (2 if pair else 1) or isinstance(text, tuple) != pair:
        wanted = '("a text", "another text"): this pocket compares two texts' if pair else "a string"
        got = f"{text!r:.60}" if isinstance(text, str | tuple) else f"a {type(text).__name__}"
        raise InputError(f"texts[{row}] is {got}; pass {wanted}")
    for string in strings:
        try:
            string.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"texts[{row}] is not valid Unicode at character {error.start}: {error.reason}; "
                "decode the bytes as UTF-8, for example with errors='replace'"
            ) from error
    return (strings[0], strings[1]) if pair else strings[0]


def _graph_inputs(session: Session) -> tuple[str, ...]:
    names = tuple(node.name for node in session.get_inputs())
    unknown = sorted(set(names) - set(GRAPH_INPUTS))
    if unknown or not names:
        raise PocketError(f"{MODEL} asks for {unknown or 'no input'}; known are {list(GRAPH_INPUTS)}; {MEND}")
    return names


def _graph_outputs(session: Session, task: Task) -> list[str]:
    """What the graph is asked for."""
    wanted = {
        **({GRAPH_OUTPUT: (2, task.outputs)} if task.outputs else {}),
        **({WORD_OUTPUT: (3, task.word_outputs)} if task.word_outputs else {}),
    }
    outputs = {node.name: node.shape for node in session.get_outputs()}
    for name, (axes, width) in wanted.items():
        if name not in outputs:
            raise PocketError(f"{MODEL} returns {sorted(outputs)}; it must return {name!r}; {MEND}")
        shape = outputs[name]
        # A named axis is no number, and an unknown shape is empty; such a graph shows its width when it runs.
        if shape and (len(shape) != axes or (isinstance(shape[-1], int) and shape[-1] != width)):
            raise PocketError(_wrong_width(name, list(shape), task))
    return list(wanted)


def _wrong_width(name: str, shape: list[Any], task: Task) -> str:
    needed = f"[batch, {task.outputs}]" if name == GRAPH_OUTPUT else f"[batch, length, {task.word_outputs}]"
    return f"{MODEL} returns {name} of shape {shape}, and the task needs {needed}; {MEND}"


def _pad_id(tokenizer: Tokenizer) -> int:
    padding = cast(dict[str, Any] | None, tokenizer.padding)
    if padding is not None:
        return padding["pad_id"]
    for token in ("[PAD]", "<pad>"):
        pad_id = tokenizer.token_to_id(token)
        if pad_id is not None:
            return pad_id
    raise PocketError(f"{TOKENIZER} has no padding section and neither [PAD] nor <pad>; {MEND}")
