"""Pieces that are of another model than the weights."""

from __future__ import annotations

from typing import cast

import torch

from pocketlm.diagnose.vocabulary import of_vocabulary, relation
from tests.tiny import ALPHABET, WORDS
from tests.tiny_models import classifier

TEXTS = [(" ".join(WORDS),), (" ".join(ALPHABET),)]


def test_a_table_in_another_order_is_of_other_pieces() -> None:
    teacher, pocket = classifier(layers=1), classifier(layers=1)
    related = relation(pocket, teacher, TEXTS)
    assert related is not None and related > 0.99
    assert of_vocabulary(pocket, teacher, TEXTS) == []
    table = cast(torch.Tensor, pocket.model.get_input_embeddings().weight)
    with torch.no_grad():
        table.copy_(table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))])
    (finding,) = of_vocabulary(pocket, teacher, TEXTS)
    assert finding.check == "vocabulary" and finding.fault


def test_a_table_with_too_few_rows_is_told() -> None:
    teacher, pocket = classifier(layers=1), classifier(layers=1)
    pocket.model.resize_token_embeddings(50)
    (finding,) = of_vocabulary(pocket, teacher, TEXTS)
    assert "the embedding table 50 rows" in finding.text


def test_many_unknown_pieces_are_worth_a_note() -> None:
    teacher = classifier(layers=1)
    found = of_vocabulary(teacher, teacher, [("\u6587\u5b57 \u4e2d",)] * 3)
    assert {one.check for one in found} == {"unknown"} and not any(one.fault for one in found)
    assert found[0].patch == {"student": {"vocabulary": None}} and found[1].patch is None


def test_too_few_common_pieces_say_nothing() -> None:
    teacher = classifier(layers=1)
    assert relation(teacher, teacher, [("a film",)]) is None
