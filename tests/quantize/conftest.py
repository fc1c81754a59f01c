from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketlm.artifact import Artifact
from pocketlm.data.examples import load_split
from pocketlm.export.onnx import export
from pocketlm.models.load import Classifier
from pocketlm.runtime.pocket import session
from tests.tiny_models import MAX_LENGTH, SINGLE, classifier, prepared

Answers = Callable[[Path], np.ndarray]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A student of two layers as `export` leaves it, with its data."""
    folder = tmp_path_factory.mktemp("exported")
    made = classifier(layers=2, hidden_size=64, intermediate_size=128)
    made.save(folder / "student")
    export(made, folder / "model.onnx")
    artifact = prepared(folder, SINGLE, train=64, valid=40).with_figures(max_length=MAX_LENGTH)
    return artifact.with_part("student", folder / "student").with_part("onnx", folder / "model.onnx")


@pytest.fixture(scope="session")
def answers(exported: Artifact) -> Answers:
    """What a graph says of the valid split, [examples, labels]."""
    made = Classifier.load(exported.parts["student"], SINGLE, MAX_LENGTH)
    encoded = made.encode(load_split(exported.parts["data"], "valid").texts)
    feed = {name: tensor.numpy() for name, tensor in made.inputs(encoded, range(len(encoded))).items()}
    return lambda path: session(path, None).run(["logits"], feed)[0]
