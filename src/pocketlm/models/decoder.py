"""Language models that write from left to right: in from safetensors or GGUF, out as safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pocketlm.errors import MissingExtraError, TeacherError
from pocketlm.models.load import quiet_transformers


@dataclass
class Decoder:
    """A transformers `…ForCausalLM` with its tokenizer.

    Args:
        model: In evaluation mode, in float32.
        tokenizer: Its tokenizer.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Texts one after the other, two line breaks between them, as pieces: [pieces]."""
        return torch.tensor(self.tokenizer.encode("\n\n".join(texts), add_special_tokens=False).ids)

    def save(self, folder: Path) -> None:
        """Write the model as transformers does, and its `tokenizer.json`."""
        with quiet_transformers():
            self.model.save_pretrained(str(folder))
        self.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def load_decoder(path: Path) -> Decoder:
    """Read a folder with a causal language model, or a file in GGUF, whose weights become float32.

    Raises:
        TeacherError: transformers finds no causal language model there.
        MissingExtraError: the file is GGUF, and the package that reads it is not installed.
    """
    folder = path.parent if path.is_file() else path
    options: dict[str, Any] = {"local_files_only": True}
    if path.is_file():
        options["gguf_file"] = path.name
    try:
        with quiet_transformers():
            tokenizer = cast(Any, AutoTokenizer).from_pretrained(str(folder), **options)
            model = cast(Any, AutoModelForCausalLM).from_pretrained(
                str(folder), dtype=torch.float32, attn_implementation="sdpa", **options
            )
    except ImportError as error:
        raise MissingExtraError("gguf", "decoder") from error
    except (ValueError, OSError) as error:
        raise TeacherError(
            f"{path} holds no causal language model that transformers can read ({error}); give a folder "
            "with config.json and safetensors, or a file in GGUF"
        ) from error
    if path.is_file():  # the weights are plain by now, but transformers would not save them
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return Decoder(model.eval(), tokenizer.backend_tokenizer)


def windows(ids: Tensor, length: int) -> Tensor:
    """Text as windows that do not overlap, [windows, length]; what is left over is not read."""
    return ids[: len(ids) // length * length].reshape(-1, length)


@torch.no_grad()
def perplexity(decoder: Decoder, ids: Tensor, length: int = 512) -> float:
    """Exp of the mean cross-entropy of every piece but the first of each window.

    Args:
        decoder: The model.
        ids: Text, [pieces]; cut into `windows`, as the pruning papers do.
        length: Pieces of a window.

    Returns:
        1 for a model that is always sure and right.
    """
    read = windows(ids, length)
    if not len(read):
        raise TeacherError(f"the text has {len(ids)} pieces, fewer than one window of {length}; give more")
    nats = 0.0
    for window in read:
        logits = decoder.model(input_ids=window[None]).logits[0, :-1].float()
        nats += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    return float(torch.tensor(nats / (len(read) * (length - 1))).exp())
