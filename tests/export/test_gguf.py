"""A language model as GGUF: what transformers reads back, and what llama.cpp has no place for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from pocketlm.errors import InputError, TeacherError
from pocketlm.export.gguf import Weights, export_gguf, interleaved
from pocketlm.models.decoder import Decoder, load_decoder
from pocketlm.verbs.export import export_model
from tests.tiny import tokenizer

pytest.importorskip("gguf")
TEXTS = ["the hero of the film", "In 2024, 37 letters — “naïve” 東京 🎬", "  two  blanks\n\nand lines"]


def bytes_tokenizer(digits: bool = True) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *letters, "Ġt", "he", "Ġthe"])}
    made = Tokenizer(models.BPE(vocabulary, [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    cut: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, level]) if digits else level
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|end|>"])
    return made


def writer(pieces: Tokenizer | None = None, **changed: Any) -> Decoder:
    torch.manual_seed(0)
    pieces = pieces or bytes_tokenizer()
    config = LlamaConfig(
        vocab_size=pieces.get_vocab_size() + 3, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0,
        eos_token_id=0, initializer_range=0.2, **changed,
    )  # fmt: skip
    return Decoder(LlamaForCausalLM(config).eval(), pieces)


@torch.no_grad()
def logits(decoder: Decoder, text: str) -> torch.Tensor:
    return decoder.model(input_ids=decoder.ids([text])[None]).logits[0]


@pytest.mark.parametrize(("weights", "most"), [("F32", 1e-5), ("F16", 0.01), ("Q8_0", 0.04), ("Q4_0", 0.7)])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_read_back_says_the_same(tmp_path: Path, weights: Weights, most: float, tied: bool) -> None:
    made = writer(tie_word_embeddings=tied)
    export_gguf(made, tmp_path / "model.gguf", "tiny", weights)
    back = load_decoder(tmp_path / "model.gguf")
    for text in TEXTS:
        assert back.ids([text]).tolist() == made.ids([text]).tolist()
        wanted, got = logits(made, text), logits(back, text)
        assert (wanted - got).square().mean().sqrt() < most * wanted.square().mean().sqrt()


def test_fewer_bits_are_fewer_bytes(tmp_path: Path) -> None:
    sizes: list[int] = []
    kinds: tuple[Weights, ...] = ("F32", "F16", "Q8_0", "Q4_0")
    for kind in kinds:
        export_gguf(writer(), tmp_path / kind, "tiny", kind)
        sizes.append((tmp_path / kind).stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[2]


def test_what_turns_together_is_side_by_side() -> None:
    weight = torch.arange(8.0)[:, None].repeat(1, 2)  # two heads of four rows
    assert interleaved(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert interleaved(weight[:, 0], 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_cut_into_words_is_named_as_llama_cpp_does(tmp_path: Path) -> None:
    import gguf

    for digits, kind in ((True, "smollm"), (False, "gpt-2")):
        path = tmp_path / kind
        export_gguf(writer(bytes_tokenizer(digits)), path, "tiny")
        fields = gguf.GGUFReader(path).fields
        assert fields["tokenizer.ggml.pre"].contents() == kind
        tokens, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
        assert types[0] == 3 and types[1] == 1 and types[-3:] == [5, 5, 5] and len(tokens) == len(types)


def test_other_tokenizers_and_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="tokenizer is of type WordPiece"):
        export_gguf(writer(tokenizer("wordpiece")), tmp_path / "a", "tiny")
    made = writer()
    made.model.config.model_type = "gpt_neox"
    with pytest.raises(TeacherError, match="architecture 'gpt_neox'"):
        export_gguf(made, tmp_path / "a", "tiny")


def test_the_verb_writes_one_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    writer().save(tmp_path / "small")
    path = export_model("small", "gguf", weights="F16")
    assert path == Path("small.gguf") and load_decoder(path.absolute()).model.config.num_hidden_layers == 2
    with pytest.raises(InputError, match=r"small\.gguf is there; name another file"):
        export_model("small", "gguf")
    export_model("small", "gguf", overwrite=True)
    writer(tokenizer("wordpiece")).save(tmp_path / "other")
    with pytest.raises(TeacherError):
        export_model("other", "gguf")
    assert not [file for file in tmp_path.iterdir() if ".partial" in file.name or file.name == "other.gguf"]


@pytest.mark.parametrize(
    ("to", "weights", "told"),
    [("tflite", "F16", "'tflite' is no format to export to; allowed: executorch, gguf"),
     ("gguf", "Q3_K", "weights 'Q3_K' are not known; allowed: F32, F16, Q8_0, Q4_0")],
)  # fmt: skip
def test_what_cannot_be_written_is_told(to: str, weights: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        export_model("anything", to, weights=weights)
