"""Language models small enough for a pocket.

    import pocketlm

    pocket = pocketlm.load("pockets/reviews")
    pocket.predict(["a quiet triumph"])

The verbs (`shrink`, `distill_student`, `prune_student`, `prune_decoder`, `tickets`, `bench`, `doctor`,
`push`) need the workshop: pip install 'pocketlm[compress]'.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pocketlm.errors import MissingExtraError

if TYPE_CHECKING:
    from pocketlm.bench import bench
    from pocketlm.doctor import doctor
    from pocketlm.exporting import export_model
    from pocketlm.pruning import prune_decoder, prune_student
    from pocketlm.push import push
    from pocketlm.quantizing import quantize_model
    from pocketlm.runtime.pocket import Pocket, Prediction, load
    from pocketlm.shrink import distill_student, shrink
    from pocketlm.tickets import tickets

__all__ = [
    "Pocket",
    "Prediction",
    "bench",
    "distill_student",
    "doctor",
    "export_model",
    "load",
    "prune_decoder",
    "prune_student",
    "push",
    "quantize_model",
    "shrink",
    "tickets",
]
__version__: str

_HOMES = {
    "Pocket": "pocketlm.runtime.pocket",
    "Prediction": "pocketlm.runtime.pocket",
    "load": "pocketlm.runtime.pocket",
    "bench": "pocketlm.bench",
    "distill_student": "pocketlm.shrink",
    "doctor": "pocketlm.doctor",
    "export_model": "pocketlm.exporting",
    "prune_decoder": "pocketlm.pruning",
    "prune_student": "pocketlm.pruning",
    "push": "pocketlm.push",
    "quantize_model": "pocketlm.quantizing",
    "shrink": "pocketlm.shrink",
    "tickets": "pocketlm.tickets",
}


class _Package(ModuleType):
    """Keeps `pocketlm.shrink` the function: importing the module of that name would put itself there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the runtime never pays for the workshop.

    Raises:
        MissingExtraError: the verb's libraries are not installed.
    """
    if name == "__version__":
        from importlib import metadata  # slow to import, and few ask

        return metadata.version("pocketlm")
    if name not in _HOMES:
        raise AttributeError(f"module 'pocketlm' has no attribute {name!r}")
    try:
        found = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("pocketlm"):
            raise
        raise MissingExtraError(error.name, "compress") from error
    globals()[name] = found
    return found
