"""What a pocket takes in a process of its own: memory, and time to the first answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from pocketlm.runtime.pocket import Text, load

PROC_STATUS = Path("/proc/self/status")
STARTS = 5
FIRST_ANSWER = """
import json, sys, time
folder, text, threads = json.load(sys.stdin)
start = time.perf_counter()
import pocketlm
pocketlm.load(folder, threads).predict([text if isinstance(text, str) else tuple(text)])
print(time.perf_counter() - start)
"""


def peak_ram_bytes(
    folder: Path, texts: Sequence[Text], threads: int | None = None, batch_size: int = 1
) -> int | None:
    """Memory that loading and running a pocket takes, on top of the bare runtime.

    A fresh process imports the runtime, reads its resident memory, loads the pocket and runs `texts`;
    the figure is its highest resident memory less that first reading.

    Args:
        folder: A pocket.
        texts: Real inputs to run.
        threads: CPU threads; None takes every physical core.
        batch_size: Examples in one run of the graph.

    Returns:
        Bytes, or None where the system does not tell (it needs Linux's /proc).

    Raises:
        PocketError: the pocket cannot be loaded.
    """
    load(folder, threads)  # a damaged pocket is told here, not as the end of a child process
    if not PROC_STATUS.exists():
        return None
    report = "from pocketlm.measure.fresh import report_ram; report_ram()"
    return int(_child(report, [str(folder), list(texts), threads, batch_size]))


def start_ms(folder: Path, text: Text, threads: int | None = None) -> float:
    """Time from the first import to the first answer, median of some fresh processes.

    Args:
        folder: A pocket, as a folder or as one file.
        text: A real input.
        threads: CPU threads; None takes every physical core.

    Returns:
        Milliseconds; the start of Python itself is not counted.

    Raises:
        PocketError: the pocket cannot be loaded.
    """
    load(folder, threads)
    order = [str(folder), text, threads]
    return 1e3 * median(float(_child(FIRST_ANSWER, order)) for _ in range(STARTS))


def _child(code: str, order: Sequence[object]) -> str:
    """What a fresh Python process prints, which reads an order from standard input."""
    child = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUTF8": "1"},
    )
    return child.stdout


def report_ram() -> None:
    """The child process of `peak_ram_bytes`: an order on standard input, bytes on standard output."""
    folder, texts, threads, batch_size = json.load(sys.stdin)
    inputs = [text if isinstance(text, str) else tuple(text) for text in texts]
    before = _status_bytes("VmRSS")
    load(folder, threads, verify=False).logits(inputs, batch_size)
    print(max(0, _status_bytes("VmHWM") - before))


def _status_bytes(field: str) -> int:
    # Not getrusage: its ru_maxrss starts from the parent's memory, which holds the teacher.
    for line in PROC_STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{PROC_STATUS} has no {field}")
