"""Language models small enough for a pocket.

    import pocketlm

    pocket = pocketlm.load("pockets/reviews")
    pocket.predict(["a quiet triumph"])

The verbs (`shrink`, `distill_student`, `prune_student`, `prune_decoder`, `quantize_model`, `tickets`,
`bench`, `doctor`, `export_model`, `push`, `cache`) need the workshop: pip install 'pocketlm[compress]'.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pocketlm.errors import MissingExtraError

if TYPE_CHECKING:
    from pocketlm.runtime.pocket import Pocket, Prediction, load
    from pocketlm.verbs.bench import bench
    from pocketlm.verbs.cache import cache
    from pocketlm.verbs.doctor import doctor
    from pocketlm.verbs.export import export_model
    from pocketlm.verbs.prune import prune_decoder, prune_student
    from pocketlm.verbs.push import push
    from pocketlm.verbs.quantize import quantize_model
    from pocketlm.verbs.shrink import distill_student, shrink
    from pocketlm.verbs.tickets import tickets

__all__ = [
    "Pocket",
    "Prediction",
    "bench",
    "cache",
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
    "bench": "pocketlm.verbs.bench",
    "cache": "pocketlm.verbs.cache",
    "distill_student": "pocketlm.verbs.shrink",
    "doctor": "pocketlm.verbs.doctor",
    "export_model": "pocketlm.verbs.export",
    "prune_decoder": "pocketlm.verbs.prune",
    "prune_student": "pocketlm.verbs.prune",
    "push": "pocketlm.verbs.push",
    "quantize_model": "pocketlm.verbs.quantize",
    "shrink": "pocketlm.verbs.shrink",
    "tickets": "pocketlm.verbs.tickets",
}


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
