"""Masked language models: what may stand at a masked place.

Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805), section 3.1 (masked LM) and appendix A.1.

Deviations: an encoder without a language-model head gets a new one of BERT's form (dense, GELU,
LayerNorm, the input embeddings as output matrix), which starts as the identity with the pieces' log
frequency as bias: its first guesses are the pieces nearest to a hidden state, and a few hundred steps on
the user's text tune it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, PreTrainedModel

from pocketlm.data.batches import pad
from pocketlm.errors import TeacherError
from pocketlm.models.load import ATTENTION, positions_of, quiet_transformers, set_dropout, takes_segments
from pocketlm.tokenization.encode import Encoded, encode, load_tokenizer, pad_id

MASK_TOKENS = ("[MASK]", "<mask>")
IGNORED = -100
"""Target of a piece that no loss is taken of."""


@dataclass
class MaskedLM:
    """A transformers `…ForMaskedLM` with its tokenizer.

    Args:
        model: Its output matrix is its table of input embeddings.
        tokenizer: Its tokenizer, without padding or truncation of its own.
        max_length: Pieces an input is cut to; no more than the model has positions for.
    """

    model: PreTrainedModel
    tokenizer: Tokenizer
    max_length: int

    def __post_init__(self) -> None:
        self.max_length = min(self.max_length, positions_of(self.model) or self.max_length)

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        return mask_id(self.tokenizer)

    def encode(self, texts: Sequence[Sequence[str]]) -> Encoded:
        """Tokenize examples as this model reads them."""
        return encode(self.tokenizer, texts, self.max_length)

    def inputs(self, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Padded input tensors, each [batch, length]."""
        return padded_inputs(self.model, ids, type_ids, pad_id(self.tokenizer))

    def hidden(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The last hidden states, [batch, length, width]."""
        return cast(Any, self.model).base_model(**inputs).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary of some hidden states, [places, width] to [places, vocabulary]."""
        return head_of(self.model)(hidden)

    def save(self, folder: Path) -> None:
        """Write the model as transformers does, and its `tokenizer.json`."""
        with quiet_transformers():
            self.model.save_pretrained(str(folder))
        self.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def mask_token(tokenizer: Tokenizer) -> str:
    """The mask token.

    Raises:
        TeacherError: the tokenizer has none of the usual ones.
    """
    for token in MASK_TOKENS:
        if tokenizer.token_to_id(token) is not None:
            return token
    raise TeacherError(
        f"the tokenizer has no mask token (looked for {', '.join(MASK_TOKENS)}); leave out what masks: "
        "the operation `mask` and masked_lm_steps of the augment stage"
    )


def mask_id(tokenizer: Tokenizer) -> int:
    """Id of the mask token."""
    return cast(int, tokenizer.token_to_id(mask_token(tokenizer)))


def padded_inputs(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]], padding: int
) -> dict[str, Tensor]:
    """Padded input tensors, each [batch, length]; segments where the model takes them."""
    padded, mask = pad(ids, padding)
    inputs = {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask).long()}
    if takes_segments(model):
        inputs["token_type_ids"] = torch.from_numpy(pad(type_ids, 0)[0])
    return inputs


def load_masked_lm(
    folder: Path, max_length: int, frequencies: Mapping[int, int] | None = None
) -> tuple[MaskedLM, bool]:
    """Read a folder's encoder with its language-model head, or with a new one.

    Args:
        folder: A model that transformers opens.
        max_length: Pieces an input is cut to.
        frequencies: How often each piece occurs in the user's text; sets the bias of a new head.

    Returns:
        The model, and True where its head is trained.

    Raises:
        TeacherError: transformers knows no masked language model of this architecture, or the encoder's
            weights do not fit its config.
    """
    options = {"use_safetensors": True, "dtype": torch.float32, "attn_implementation": ATTENTION}
    try:
        with quiet_transformers():
            auto = cast(Any, AutoModelForMaskedLM)
            model, found = auto.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, **options
            )
    except ValueError as error:
        raise TeacherError(
            f"{folder.name} is of an architecture without a masked language model ({error}); "
            "use an encoder of the BERT family, or make texts without the operation `replace`"
        ) from error
    missing = set(found["missing_keys"])
    body = sorted(name for name in missing if name.startswith(f"{model.base_model_prefix}."))
    if body:
        raise TeacherError(
            f"the weights in {folder} do not fit its config.json: {', '.join(body[:3])} missing; "
            "fetch or save the model again"
        )
    set_dropout(model.config, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if missing:
        start_head(model, frequencies or {})
    return MaskedLM(model, load_tokenizer(folder), max_length), not missing


def head_of(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The map from hidden states to logits over the vocabulary.

    Raises:
        TeacherError: no architecture that is known here.
    """
    network, kind = cast(Any, model), model.config.model_type
    if kind in ("bert", "megatron-bert") or (kind == "deberta-v2" and network.legacy):
        return network.cls
    if kind == "albert":
        return network.predictions
    if kind in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        return network.lm_head
    if kind == "electra":
        return lambda hidden: network.generator_lm_head(network.generator_predictions(hidden))
    if kind == "distilbert":
        return lambda hidden: network.vocab_projector(
            network.vocab_layer_norm(network.activation(network.vocab_transform(hidden)))
        )
    raise TeacherError(
        f"the head of a {kind} masked language model is not known; use BERT, RoBERTa, MPNet, ELECTRA, "
        "DistilBERT, ALBERT, DeBERTa-v2 or MegatronBERT, or make texts without the operation `replace`"
    )


@torch.no_grad()
def start_head(model: PreTrainedModel, frequencies: Mapping[int, int]) -> None:
    """Let a new head guess the pieces nearest to a hidden state, the frequent ones first, in place."""
    output = cast(Any, model).get_output_embeddings()
    body = set(cast(Any, model).base_model.parameters())
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not output and module.weight not in body:
            nn.init.eye_(module.weight)
            nn.init.zeros_(module.bias)
            if model.config.model_type == "albert":  # the way back to the width of its embeddings
                wider = cast(Any, model).base_model.encoder.embedding_hidden_mapping_in
                module.weight.copy_(cast(Tensor, torch.linalg.pinv(wider.weight)))
                module.bias.copy_(-module.weight @ wider.bias)
    counts = torch.ones(output.out_features)  # a piece that was never met is as rare as can be
    for piece, count in frequencies.items():
        counts[piece] += count
    output.bias.copy_((counts / counts.sum()).log() - (1 / counts.sum()).log())


def frequencies_of(encoded: Encoded) -> Counter[int]:
    """How often each piece occurs, special tokens left out."""
    return Counter(
        piece
        for ids, origins in zip(encoded.ids, encoded.origins, strict=True)
        for piece, origin in zip(ids, origins, strict=True)
        if origin >= 0
    )


def mask_pieces(
    ids: Sequence[int],
    origins: Sequence[int],
    mask: int,
    vocabulary: int,
    chance: np.random.Generator,
    share: float = 0.15,
) -> tuple[list[int], list[int]]:
    """BERT's masking: `share` of the pieces are to be guessed; of these 80 % masked, 10 % random, 10 % kept.

    Args:
        ids: Pieces of one example.
        origins: -1 for special tokens, which are never masked.
        mask: Id of the mask token.
        vocabulary: Random pieces are drawn below this id.
        chance: All that is random.
        share: Of the pieces that are no special tokens; at least one of them is masked.

    Returns:
        What the model reads, and the piece to be guessed at each place or `IGNORED`.
    """
    places = [place for place, origin in enumerate(origins) if origin >= 0]
    read, targets = list(ids), [IGNORED] * len(ids)
    if not places:
        return read, targets
    for place in chance.choice(places, max(1, round(share * len(places))), replace=False).tolist():
        targets[place] = ids[place]
        way = chance.random()
        if way < 0.8:
            read[place] = mask
        elif way < 0.9:
            read[place] = int(chance.integers(vocabulary))
    return read, targets


def masked_lm_loss(lm: MaskedLM, inputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy of the pieces at masked places (section 3.1).

    Args:
        lm: The model.
        inputs: What it reads, each [batch, length].
        targets: Pieces to be guessed, `IGNORED` elsewhere, [batch, length].

    Returns:
        Mean over an example's masked places, [batch]; 0 for one without any.
    """
    asked = targets != IGNORED
    losses = F.cross_entropy(lm.logits(lm.hidden(inputs)[asked]).float(), targets[asked], reduction="none")
    rows = asked.nonzero()[:, 0]
    sums = torch.zeros(len(targets)).index_add(0, rows, losses)
    return sums / asked.sum(dim=1).clamp_min(1)


@torch.no_grad()
def likely_pieces(
    lm: MaskedLM,
    ids: Sequence[Sequence[int]],
    type_ids: Sequence[Sequence[int]],
    allowed: NDArray[np.bool_],
    count: int,
) -> list[list[list[int]]]:
    """The `count` likeliest of the allowed pieces at every mask token, likeliest first.

    Args:
        lm: The model; put it in evaluation mode.
        ids: Inputs with mask tokens in them.
        type_ids: Their segments.
        allowed: True for pieces that may be given, [vocabulary].
        count: Pieces for every mask.

    Returns:
        For every input and each of its masks, in order, some pieces.
    """
    inputs = lm.inputs(ids, type_ids)
    asked = inputs["input_ids"] == lm.mask_id
    logits = lm.logits(lm.hidden(inputs)[asked])
    logits[:, : len(allowed)].masked_fill_(~torch.from_numpy(allowed), -torch.inf)
    best = cast(list[list[int]], logits.topk(min(count, int(allowed.sum()))).indices.tolist())
    found: list[list[list[int]]] = [[] for _ in ids]
    rows = cast(list[int], asked.nonzero()[:, 0].tolist())
    for row, pieces in zip(rows, best, strict=True):
        found[row].append(pieces)
    return found
