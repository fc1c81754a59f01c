"""What a figure was measured on: hardware, versions and commit, for every line of results."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from pocketlm.runtime.pocket import physical_cores

PACKAGES = ("pocketlm", "torch", "transformers", "onnxruntime", "tokenizers", "numpy")

# Name in our results to the kernel's names, x86 then Arm: what decides how fast int8 and bf16 are here.
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "avx2": ("avx2",),
    "avx_vnni": ("avx_vnni",),
    "avx512": ("avx512f",),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "amx_int8": ("amx_int8",),
    "amx_bf16": ("amx_bf16",),
    "neon": ("asimd", "neon"),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
}

CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """This machine: `cpu`, `cores` (physical), `ram_gb` (None where unknown), `os`, `isa`."""
    cpuinfo = CPUINFO.read_text(encoding="utf-8", errors="replace") if CPUINFO.exists() else ""
    return {
        "cpu": cpu_name(cpuinfo) or platform.processor() or platform.machine(),
        "cores": physical_cores(),
        "ram_gb": _ram_gb(),
        "os": platform.platform(),
        "isa": isa(cpuinfo),
    }


def cpu_name(cpuinfo: str) -> str | None:
    """The processor's name in the text of /proc/cpuinfo; Arm kernels often give none."""
    return _field(cpuinfo, "model name") or _field(cpuinfo, "Model")


def isa(cpuinfo: str) -> list[str]:
    """The instruction sets of `ISA_FLAGS` that the text of /proc/cpuinfo names."""
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return [name for name, kernel_names in ISA_FLAGS.items() if flags.intersection(kernel_names)]


def versions() -> dict[str, str]:
    """Version of Python and of those of `PACKAGES` that are installed; imports none of them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit this source was checked out from, with `-dirty` where the package differs from it.

    None where it is not a checkout: an installed package may lie inside the repository of another project.
    """
    package = Path(__file__).resolve().parents[1]
    if _git(package, "ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None
    head = _git(package, "rev-parse", "--verify", "HEAD")
    if head is None:
        return None
    return head if _git(package, "status", "--porcelain", "--", ".") == "" else f"{head}-dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _field(cpuinfo: str, name: str) -> str | None:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _ram_gb() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
