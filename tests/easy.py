"""A random teacher of four thin layers and data that it can learn in seconds: nothing is downloaded."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Some words of every text name its label, so that a random encoder learns the task in seconds.
CUES = {
    "Blame": ("dull", "tedious", "clumsy"),
    "praise": ("radiant", "gripping", "superb"),
    "ça va": ("passable", "ordinary", "middling"),
}
LABELS = tuple(sorted(CUES))
NEUTRAL = (
    *("a", "the", "of", "and", "in", "its", "this", "that", "with", "film", "story", "actor", "scene"),
    *("plot", "music", "camera", "city", "river", "night", "morning", "winter", "house", "letter", "road"),
    *("play", "voice", "garden", "stone", "paper", "window", "bridge", "market", "season", "village"),
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"


def vocabulary() -> list[str]:
    """About 300 WordPieces: the words, and every letter in both its forms."""
    words = dict.fromkeys([*NEUTRAL, *(cue for cues in CUES.values() for cue in cues)])
    pieces = [word[:3] for word in words if len(word) > 4]
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    rest = [f"##{word[-3:]}" for word in words if len(word) > 3]
    return list(dict.fromkeys([*SPECIAL, *letters, *words, *pieces, *rest]))


def write_teacher(folder: Path, positions: int = 64) -> Path:
    """A random BERT with 4 layers of width 32, without a head, as `save_pretrained` writes it."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    pieces = vocabulary()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", pieces.index("[CLS]")), ("[SEP]", pieces.index("[SEP]"))],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=positions, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(str(folder))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A tiny teacher\n", encoding="utf-8")
    return folder


def sentence(chance: random.Random, label: str, words: int | None = None) -> str:
    """Neutral words around two cues of a label."""
    chosen = [chance.choice(NEUTRAL) for _ in range(words or chance.randint(4, 12))]
    for cue in chance.choices(CUES[label], k=2):
        chosen.insert(chance.randint(0, len(chosen)), cue)
    return " ".join(chosen)


def sentence_rows(count: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `text` and `label`, three labels in turn."""
    chance = random.Random(seed)
    return [
        {"text": sentence(chance, LABELS[index % 3]), "label": LABELS[index % 3]} for index in range(count)
    ]


def pair_rows(count: int = 400, seed: int = 1) -> list[dict[str, Any]]:
    """Rows of `text_a`, `text_b` and `label`: which of two moods the second text has."""
    chance = random.Random(seed)
    moods = {"no": "Blame", "yes": "praise"}
    return [
        {
            "text_a": " ".join(chance.choices(NEUTRAL, k=5)),
            "text_b": sentence(chance, moods[label], 5),
            "label": label,
        }
        for label in (("no", "yes")[index % 2] for index in range(count))
    ]


def regression_rows(count: int = 400, seed: int = 2) -> list[dict[str, Any]]:
    """Rows of `text_a`, `text_b` and `score`, which counts the radiant words of the second text."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        score = index % 5
        words = [*("radiant",) * score, *("dull",) * (4 - score), *chance.choices(NEUTRAL, k=3)]
        chance.shuffle(words)
        first = " ".join(chance.choices(NEUTRAL, k=4))
        rows.append({"text_a": first, "text_b": " ".join(words), "score": score + 0.5})
    return rows


def word_rows(kind: str, count: int = 400, seed: int = 3) -> list[dict[str, Any]]:
    """Rows of a joint, tokens, multilabel or qa task: the cues of one or two moods tell all of it."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        mood = LABELS[index % 3]
        first, second = (chance.choices(NEUTRAL, k=chance.randint(1, 4)) for _ in range(2))
        cues = chance.choices(CUES[mood], k=1 + index % 2)
        tokens = [*first, *cues, *second]
        inside = ["B-cue", "I-cue"][: len(cues)]
        if kind == "qa":
            answer = " ".join(cues)
            rows.append({"question": "which film", "context": " ".join(tokens), "answers": [answer]})
        elif kind == "multilabel":
            both = [mood, "twice"] if len(cues) == 2 else [mood]
            rows.append({"text": " ".join(tokens), "label": both})
        else:
            row = {"tokens": tokens, "slots": [*["O"] * len(first), *inside, *["O"] * len(second)]}
            rows.append({**row, "intent": mood} if kind == "joint" else row)
    return rows


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tsv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# What makes a recipe fit a teacher of this size: it starts from nothing, so its steps are large.
QUICK: tuple[tuple[str, str, Any], ...] = (
    *(("finetune", name, value) for name, value in {
        "epochs": 8, "learning_rate": 3e-3, "head_rate": 1.0, "freeze_embeddings": False, "patience": None,
        "max_length": 32,
    }.items()),
    *(("student", name, value) for name, value in {
        "layers": 2, "hidden_size": None, "heads": None, "intermediate_size": 48, "vocabulary": 140,
    }.items()),
    ("augment", "most", 8),
    *(("distill", name, value) for name, value in {"epochs": 8, "learning_rate": 3e-3}.items()),
    ("int8", "compute", "int8"),
    ("controls", "epochs", 2),
    *(("measure", name, value) for name, value in {"rounds": 40, "batches": 3}.items()),
)  # fmt: skip


def settings(overrides: Sequence[tuple[str, str, Any]] = QUICK) -> list[str]:
    """Overrides as arguments of the command line."""
    return [
        part for stage, key, value in overrides for part in ("--set", f"{stage}.{key}={json.dumps(value)}")
    ]


def exact_outputs(**fields: Any) -> Any:
    """The stage `TeacherOutputs` in float32, whatever the machine likes better."""
    from pocketlm.distill.teacher_outputs import TeacherOutputs

    return TeacherOutputs(precision="fp32", **fields)
