"""A language model in GGUF: read with its tokenizer, and written as plain safetensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketlm.models.decoder import load_decoder, perplexity
from pocketlm.sources import resolve

gguf = pytest.importorskip("gguf")
WIDTH, INNER, HEADS, LAYERS = 32, 64, 2, 2


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaMA of two layers over single bytes."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokens = ["<|endoftext|>", *bytes_to_unicode().values(), "Ġt", "he"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["Ġ t", "h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    chance = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        values = np.ones(shape) if len(shape) == 1 else chance.normal(0, 0.3, shape)
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", len(tokens), WIDTH)
    add("output_norm.weight", WIDTH)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{norm}.weight", WIDTH)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", WIDTH, WIDTH)
        for part in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{part}.weight", INNER, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_becomes_safetensors_that_say_the_same(file: Path, tmp_path: Path) -> None:
    found = resolve(str(file), "decoder", tmp_path)
    assert found.path == file and found.name == "tiny.gguf"
    decoder = load_decoder(file)
    ids = decoder.ids(["the river at night", "the road to the city"])
    assert decoder.tokenizer.decode(ids.tolist()) == "the river at night\n\nthe road to the city"
    decoder.save(tmp_path / "plain")
    again = load_decoder(tmp_path / "plain")
    assert torch.equal(again.ids(["the river"]), decoder.ids(["the river"]))
    assert perplexity(again, ids, 16) == pytest.approx(perplexity(decoder, ids, 16), rel=1e-5)
    assert (tmp_path / "plain" / "model.safetensors").exists()
