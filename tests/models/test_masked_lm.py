from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from pocketlm.errors import TeacherError
from pocketlm.models.masked_lm import (
    IGNORED,
    MaskedLM,
    frequencies_of,
    likely_pieces,
    load_masked_lm,
    mask_pieces,
    mask_token,
    masked_lm_loss,
)
from tests.tiny import sentences, tokenizer
from tests.tiny_models import FAMILIES, MAX_LENGTH, classifier, config_of, tokenizer_of

TEXTS = [(text,) for text in sentences(12)]


def masked_lm(architecture="bert") -> MaskedLM:
    tokens = tokenizer_of(architecture)
    torch.manual_seed(0)
    shape = config_of(architecture, tokens.get_vocab_size(), 2, MAX_LENGTH + 8)
    model = AutoModelForMaskedLM.from_config(shape, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return MaskedLM(model.eval(), tokens, MAX_LENGTH)


def masked(lm: MaskedLM, seed: int = 0):
    encoded = lm.encode(TEXTS)
    chance = np.random.default_rng(seed)
    pairs = [
        mask_pieces(ids, origins, lm.mask_id, 99, chance)
        for ids, origins in zip(encoded.ids, encoded.origins, strict=True)
    ]
    return encoded, [read for read, _ in pairs], [targets for _, targets in pairs]


def pad_targets(targets, length: int) -> torch.Tensor:
    return torch.tensor([row + [IGNORED] * (length - len(row)) for row in targets])


@pytest.mark.parametrize("architecture", FAMILIES)
def test_logits_of_places_are_those_of_transformers(architecture) -> None:
    lm = masked_lm(architecture)
    encoded = lm.encode(TEXTS)
    inputs = lm.inputs(encoded.ids, encoded.type_ids)
    whole = lm.model(**inputs).logits
    torch.testing.assert_close(lm.logits(lm.hidden(inputs)), whole)
    places = inputs["attention_mask"].bool()
    torch.testing.assert_close(lm.logits(lm.hidden(inputs)[places]), whole[places])


@pytest.mark.parametrize("architecture", FAMILIES)
def test_the_loss_of_one_text_is_that_of_transformers(architecture) -> None:
    lm = masked_lm(architecture)
    encoded, read, targets = masked(lm)
    for row in range(4):
        inputs = lm.inputs([read[row]], [encoded.type_ids[row]])
        wanted = torch.tensor([targets[row]])
        ours = masked_lm_loss(lm, inputs, wanted)
        torch.testing.assert_close(ours[0], lm.model(**inputs, labels=wanted).loss)


def test_padding_never_changes_a_loss() -> None:
    lm = masked_lm()
    encoded, read, targets = masked(lm)
    inputs = lm.inputs(read, encoded.type_ids)
    together = masked_lm_loss(lm, inputs, pad_targets(targets, inputs["input_ids"].shape[1]))
    for row in range(len(read)):
        alone = lm.inputs([read[row]], [encoded.type_ids[row]])
        torch.testing.assert_close(masked_lm_loss(lm, alone, torch.tensor([targets[row]]))[0], together[row])


def test_a_text_without_masks_loses_nothing() -> None:
    lm = masked_lm()
    encoded = lm.encode([("film",), ("",)])
    inputs = lm.inputs(encoded.ids, encoded.type_ids)
    targets = torch.full_like(inputs["input_ids"], IGNORED)
    assert masked_lm_loss(lm, inputs, targets).tolist() == [0.0, 0.0]
    assert mask_pieces(encoded.ids[1], encoded.origins[1], 4, 9, np.random.default_rng(0)) == (
        encoded.ids[1],
        [IGNORED, IGNORED],
    )


def test_masks_fall_on_text_as_often_as_bert_lets_them() -> None:
    ids, origins = list(range(10, 1010)), [-1, *[0] * 998, -1]
    read, targets = mask_pieces(ids, origins, 4, 7, np.random.default_rng(0))
    asked = [place for place in range(1000) if targets[place] != IGNORED]
    assert len(asked) == round(0.15 * 998) and 0 not in asked and 999 not in asked
    assert all(targets[place] == ids[place] for place in asked)
    assert all(read[place] == ids[place] for place in range(1000) if place not in asked)
    masks, kept = (
        (sum(read[p] == w for p in asked) for w in (4, None)),
        [p for p in asked if read[p] == ids[p]],
    )
    assert 0.7 < next(masks) / len(asked) < 0.9
    assert 0.03 < len(kept) / len(asked) < 0.2
    assert mask_pieces(ids, origins, 4, 7, np.random.default_rng(0)) == (read, targets)
    one = mask_pieces([1, 50, 2], [-1, 0, -1], 4, 7, np.random.default_rng(1))[1]
    assert one == [IGNORED, 50, IGNORED]


def test_the_likeliest_pieces_are_the_models(tmp_path: Path) -> None:
    lm = masked_lm()
    encoded = lm.encode(TEXTS[:5])
    read = [[ids[0], lm.mask_id, *ids[2:]] for ids in encoded.ids]
    read[1][-2] = lm.mask_id
    allowed = np.zeros(lm.tokenizer.get_vocab_size(), dtype=np.bool_)
    allowed[20:60] = True
    found = likely_pieces(lm, read, encoded.type_ids, allowed, 6)
    for row, ids in enumerate(read):
        logits = lm.model(**lm.inputs([ids], [encoded.type_ids[row]])).logits[0]
        places = [place for place, piece in enumerate(ids) if piece == lm.mask_id]
        assert len(found[row]) == len(places)
        for place, pieces in zip(places, found[row], strict=True):
            assert pieces == (logits[place, 20:60].topk(6).indices + 20).tolist()


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_saved_head_is_found_again(architecture, tmp_path: Path) -> None:
    lm = masked_lm(architecture)
    lm.save(tmp_path)
    again, trained = load_masked_lm(tmp_path, MAX_LENGTH)
    assert trained
    inputs = lm.inputs(lm.encode(TEXTS).ids, lm.encode(TEXTS).type_ids)
    torch.testing.assert_close(again.model.eval()(**inputs).logits, lm.model(**inputs).logits)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_new_head_guesses_frequent_pieces_and_the_encoder_stays(architecture, tmp_path: Path) -> None:
    teacher = classifier(architecture)
    teacher.save(tmp_path)
    encoded = teacher.encode(TEXTS)
    frequencies = frequencies_of(encoded)
    assert sum(frequencies.values()) == sum(sum(o >= 0 for o in origins) for origins in encoded.origins)
    lm, trained = load_masked_lm(tmp_path, MAX_LENGTH, frequencies)
    assert not trained
    inputs = lm.inputs(encoded.ids, encoded.type_ids)
    theirs = teacher.model.base_model(**inputs)[0]
    torch.testing.assert_close(lm.hidden(inputs), theirs)
    output = lm.model.get_output_embeddings()
    assert output.weight is lm.model.get_input_embeddings().weight
    most = max(frequencies, key=lambda piece: frequencies[piece])
    assert (
        output.bias.argmax()
        == torch.tensor([frequencies[piece] for piece in range(len(output.bias))]).argmax()
    )
    assert output.bias[most] > 0 and output.bias.min() == 0


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    assert mask_token(tokenizer("byte-bpe")) == "<mask>"
    bare = tokenizer("wordpiece").from_str(tokenizer("wordpiece").to_str().replace("[MASK]", "[HIDE]"))
    with pytest.raises(TeacherError, match="no mask token"):
        mask_token(bare)
