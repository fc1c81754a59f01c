from __future__ import annotations

from pathlib import Path

import pytest

from pocketlm.export.onnx import export
from pocketlm.models.load import Classifier
from tests.tiny_models import PAIR, SINGLE, VALUE, Architecture, classifier

# Each takes seconds to export: pairs where segments mean something, and every kind of task once.
CASES = {"bert": PAIR, "electra": PAIR, "roberta": SINGLE, "distilbert": VALUE, "mpnet": SINGLE}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory):
    """A function from an architecture to its classifier and the exported graph, made once."""
    made: dict[Architecture, tuple[Classifier, Path]] = {}

    def get(case: Architecture) -> tuple[Classifier, Path]:
        if case not in made:
            model = classifier(case, CASES[case], layers=2)
            path = tmp_path_factory.mktemp(case) / "below" / "model.onnx"
            export(model, path)
            made[case] = (model, path)
        return made[case]

    return get
