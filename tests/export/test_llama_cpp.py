"""GGUF under llama.cpp itself, which is built from source in some minutes: `make test-llama`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pocketlm.export.gguf import export_gguf
from pocketlm.models.decoder import Decoder, load_decoder
from pocketlm.sources import SMOLLM2, resolve
from tests.export.test_gguf import TEXTS, writer

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama.cpp is not installed: make test-llama")
pytestmark = pytest.mark.slow


def opened(path: Path) -> Any:
    return llama_cpp.Llama(str(path), n_ctx=64, n_threads=2, verbose=False, logits_all=True)


@torch.no_grad()
def greedy(decoder: Decoder, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(decoder.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


def says_the_same(decoder: Decoder, path: Path, texts: list[str], count: int) -> None:
    export_gguf(decoder, path, "small", "F32")
    theirs = opened(path)
    for text in texts:
        ids = decoder.ids([text]).tolist()
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids
        theirs.reset()
        said: list[int] = []
        for token in theirs.generate(ids, temp=0.0, repeat_penalty=1.0):
            said.append(token)
            if len(said) == count:
                break
        assert said == greedy(decoder, ids, count)


def test_a_small_model_writes_the_same(tmp_path: Path) -> None:
    says_the_same(writer(), tmp_path / "small.gguf", [text for text in TEXTS if text.strip() == text], 12)


def test_smollm2_writes_the_same(tmp_path: Path) -> None:
    source = resolve(SMOLLM2, "decoder", tmp_path / "cache")
    texts = ["The capital of France is", "In 2024 the city had 120,000 people, and"]
    says_the_same(load_decoder(source.path), tmp_path / "smollm2.gguf", texts, 16)
