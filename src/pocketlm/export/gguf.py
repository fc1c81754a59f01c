"""Export a language model that writes to GGUF, for llama.cpp and what is built on it.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Models of LLaMA's architecture, with a
tokenizer of byte-level BPE as GPT-2's or SmolLM's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from torch import Tensor

from pocketlm.errors import MissingExtraError, TeacherError
from pocketlm.models.decoder import Decoder

Weights = Literal["F32", "F16", "Q8_0", "Q4_0"]

ARCHITECTURE = "llama"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens."""


def export_gguf(decoder: Decoder, path: Path, name: str, weights: Weights = "Q8_0") -> None:
    """Write a decoder as one file.

    Args:
        decoder: Of LLaMA's architecture.
        path: Where.
        name: What the model is called in it.
        weights: Of matrices: floats, or blocks of 32 numbers of 8 or 4 bits; rows of another width are F16.

    Raises:
        TeacherError: llama.cpp has no such model or tokenizer, or not under this name.
        MissingExtraError: the package gguf is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtraError("gguf", "decoder") from error
    config = cast(Any, decoder.model.config)
    rope = config.rope_parameters
    if config.model_type != ARCHITECTURE or rope.get("rope_type", "default") != "default":
        raise TeacherError(
            f"{name} is of the architecture {config.model_type!r} with positions of type "
            f"{rope.get('rope_type', 'default')!r}; GGUF is written of 'llama' with 'default' ones"
        )
    writer: Any = gguf.GGUFWriter(path, ARCHITECTURE)
    head_size = config.head_dim
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, decoder, config)
    names: Any = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    state = decoder.model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for own, tensor in state.items():
        known = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise TeacherError(f"GGUF has no place for {own} of {name}")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        turned = next((count for part, count in heads.items() if f".{part}." in own), None)
        values = (tensor if turned is None else interleaved(tensor, turned)).float().numpy()
        kind = _kind(values, weights)
        quantization = getattr(gguf.GGMLQuantizationType, kind)
        writer.add_tensor(known, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a map to queries or keys as GGUF has them: the two that turn together side by side.

    Args:
        weight: [heads · size, inputs] or, of a bias, [heads · size]; of every head the first half turns with
            the second, as transformers has it.
        heads: How many.
    """
    size = len(weight) // heads
    halves = weight.reshape(heads, 2, size // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _kind(values: np.ndarray, weights: Weights) -> str:
    if values.ndim < 2:
        return "F32"
    return weights if weights.startswith("F") or values.shape[-1] % 32 == 0 else "F16"


def _add_tokenizer(writer: Any, decoder: Decoder, config: Any) -> None:
    described = json.loads(decoder.tokenizer.to_str())
    model = described["model"]
    kind = _pre_tokenizer(described)
    if model["type"] != "BPE" or kind is None:
        raise TeacherError(
            f"the tokenizer is of type {model['type']} with another cut into words than GPT-2's or SmolLM's; "
            "llama.cpp would read other pieces"
        )
    tokens = [f"[unused {index}]" for index in range(config.vocab_size)]
    types = [UNUSED] * config.vocab_size
    for token, index in decoder.tokenizer.get_vocab(with_added_tokens=True).items():
        tokens[index], types[index] = token, NORMAL
    for added in described["added_tokens"]:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in model["merges"]])
    writer.add_add_bos_token(False)
    for place in ("bos", "eos", "pad"):
        given: Any = getattr(config, f"{place}_token_id", None)
        index = cast(list[int], given)[0] if isinstance(given, list) else given
        if index is not None:
            getattr(writer, f"add_{place}_token_id")(index)


def _pre_tokenizer(described: dict[str, Any]) -> str | None:
    """What llama.cpp calls the cut into words before BPE; None where it is neither of the two."""
    if described.get("normalizer") is not None:
        return None
    given: dict[str, Any] = described.get("pre_tokenizer") or {}
    steps: list[dict[str, Any]] = given.get("pretokenizers", [given])
    kinds = [step.get("type") for step in steps]
    if kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space") or not steps[-1].get("use_regex", True):
        return None
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    return "smollm" if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") else None
