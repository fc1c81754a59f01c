"""`pocketlm` run again and again, each time in a fork of one process that has everything imported.

The fixture `forked` starts it. An order is a JSON line on standard input, a result one on standard output:

    {"arguments": […], "environment": {…}, "folders": […], "signal": 9, "at": 17}
    {"code": -9, "changes": 17, "stdout": "", "stderr": "…"}

`signal` reaches the fork just before its change number `at` to the file system below `folders`: the
opening of a file for writing, a rename, a removal, a new folder. That is anywhere where being killed
matters, and the same place each time. `seconds` instead of `at` is a place of the clock's choice.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
LONGEST_SECONDS = 200.0


def main() -> None:
    """Serve orders until standard input ends."""

    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)


def serve(order: dict[str, Any]) -> dict[str, Any]:
    """Run one order in a fork and wait for it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child = os.fork()
        if child == 0:
            run(order, folder)
        began, told = time.monotonic(), False
        while True:
            finished, status = os.waitpid(child, os.WNOHANG)
            if finished:
                break
            passed = time.monotonic() - began
            if not told and passed > order.get("seconds", LONGEST_SECONDS):
                os.kill(child, order.get("signal", signal.SIGKILL))
                told = True
            time.sleep(0.01)
        # What this fork imported, the next ones find imported.
        for module in read(folder / "modules").split():
            if module not in sys.modules:
                with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
                    importlib.import_module(module)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "changes": len(read(folder / "changes")),
            "stdout": read(folder / "stdout"),
            "stderr": read(folder / "stderr"),
        }


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def run(order: dict[str, Any], folder: Path) -> None:
    """The fork: `pocketlm` as the command line runs it, quick in what is timed and weighed."""
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.update(order.get("environment", {}))
        # A shell's background job starts with Ctrl-C ignored, and hands that on.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        import pocketlm.measure.compare as compare
        import pocketlm.train as train
        from pocketlm.cli import main

        train.CHECKPOINT_SECONDS = order.get("checkpoint_seconds", train.CHECKPOINT_SECONDS)
        compare.REST_SECONDS = 0.0
        compare.energy_of = lambda run, texts: None
        compare.peak_ram_bytes = lambda folder, texts, threads: None
        compare.start_ms = lambda folder, text, threads: None
        if order.get("folders"):
            count_changes(folder, order["folders"], order.get("at"), order.get("signal"))
        try:
            main(order["arguments"])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        tell_modules(folder)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def tell_modules(folder: Path) -> None:
    (folder / "modules").write_text(" ".join(list(sys.modules)))


def count_changes(folder: Path, folders: list[str], at: int | None, number: int | None) -> None:
    """Write a byte to a tally for every change below `folders`; send the signal before change `at`."""
    made = 0
    output = os.open(folder / "changes", os.O_WRONLY | os.O_CREAT)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal made
        if event not in CHANGES and not (event == "open" and writes(arguments)):
            return
        if not isinstance(arguments[0], str) or not arguments[0].startswith(tuple(folders)):
            return
        made += 1
        os.write(output, b".")
        if made == at and number is not None:
            tell_modules(folder)
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


if __name__ == "__main__":
    main()
