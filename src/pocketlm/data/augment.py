"""New texts made of the user's own, for the teacher to label: pure functions on words.

- Word replacement: TinyBERT (Jiao et al. 2020, https://arxiv.org/abs/1909.10351), algorithm 1.
- Masking, words of the same part of speech, n-grams: Tang et al. 2019, "Distilling Task-Specific Knowledge
  from BERT into Simple Neural Networks" (https://arxiv.org/abs/1903.12136), section 3.3.
- Crossover: the beginning of one text and the end of another, as genetic algorithms recombine.
- Unseen words: words of content replaced by words that no text of the user's has (ours), so that the student
  is asked about words it will meet, and the teacher's answer to what is foreign to its task is learned.

Deviations: a word is a run without white space, and what is made of words is joined by blanks, so that
labels of words stay with their words; only the letters of a word are replaced, and its punctuation stays.
Both papers change every text in the same way; here each new text comes from one operation, drawn by
weight. A part of speech is guessed: words of like frequency that end alike. An n-gram's length is drawn
as a share of its text, not as 1 to 5 words. A word is no candidate for itself. Of the two texts of a
pair, the first, the second or both are changed, as in Tang et al.; or one text stands on both sides, changed
on one, because pairs that say nearly the same are rare otherwise. A text without white space, as in Chinese,
is one word: little can be made of it.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pocketlm.data.unlabeled import normalised

Texts = tuple[str, ...]
Candidates = Mapping[int, Sequence[str]]
"""Index of a word in its text to the words that may stand for it."""

Operation = Literal["replace", "spans", "crossover", "mask", "class", "unseen"]
OPERATIONS: tuple[Operation, ...] = ("replace", "spans", "crossover", "mask", "class", "unseen")

# Words that carry grammar or negation: to replace them gives another sentence, or none.
_GRAMMAR = """
    a an the and or but nor if because while until although though than as so of at by for with about
    against between into through during before after above below to from up down in out on off over under
    i me my we us our you your he him his she her it its they them their this that these those who whom
    which what when where why how is am are was were be been being have has had having do does did doing
    can could will would shall should may might must not no never only own same too very all any both each
    few more most other some such here there then once again further now just s t d ll m re ve
"""
FUNCTION_WORDS = frozenset(_GRAMMAR.split())
_CORE = re.compile(r"(\W*)(\w(?:.*\w)?)(\W*)", re.DOTALL)


def words_of(text: str) -> list[str]:
    """The runs of a text without white space."""
    return text.split()


def core_of(word: str) -> tuple[str, str, str] | None:
    """A word as what stands before, its letters, and what stands behind; None where it has no letters.

    Example:
        >>> core_of('"quiet,')
        ('"', 'quiet', ',')
    """
    found = _CORE.fullmatch(word)
    return (found[1], found[2], found[3]) if found else None


def is_replaceable(core: str) -> bool:
    """True for words of letters alone that carry content."""
    return core.isalpha() and core.casefold() not in FUNCTION_WORDS


def like_case(word: str, example: str) -> str:
    """`word` in the capitals of `example`: `Film` for `Movie`."""
    if len(example) > 1 and example.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if example[:1].isupper() else word


def replace_words(
    words: Sequence[str], candidates: Candidates, p_t: float, chance: random.Random
) -> list[str]:
    """Algorithm 1 of TinyBERT, lines 12 to 17: every word with candidates is replaced with probability p_t.

    Args:
        words: The words of a text.
        candidates: Words that may stand for the word at an index, in any case.
        p_t: Probability for each word.
        chance: All that is random.
    """
    made = list(words)
    for index, options in candidates.items():
        if options and chance.random() < p_t:
            parts = core_of(words[index])
            if parts is not None:
                before, core, behind = parts
                made[index] = before + like_case(chance.choice(options), core) + behind
    return made


def mask_words(words: Sequence[str], p_mask: float, mask: str, chance: random.Random) -> list[str]:
    """Words, each of them replaced by the mask token with probability p_mask (Tang et al.)."""
    return [mask if chance.random() < p_mask else word for word in words]


def span_of(words: Sequence[str], shares: tuple[float, float], chance: random.Random) -> list[str]:
    """A run of words whose length is a share of the text's between the two `shares` (Tang's n-gram)."""
    length = max(1, round(len(words) * chance.uniform(*shares)))
    start = chance.randint(0, len(words) - length)
    return list(words[start : start + length])


def crossover(first: Sequence[str], second: Sequence[str], chance: random.Random) -> list[str]:
    """The beginning of `first`, cut at the same share of both, and the end of `second`; each gives a word."""
    share = chance.random()
    head = max(1, round(share * len(first)))
    tail = min(len(second) - 1, round(share * len(second)))
    return [*first[:head], *second[tail:]]


class WordClasses:
    """Words of like frequency that end alike: a guess at words of the same part of speech.

    Args:
        counts: How often every word occurs, in lower case.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        members: defaultdict[tuple[str, int], list[str]] = defaultdict(list)
        for word in sorted(counts):
            members[self._key(word, counts[word])].append(word)
        self._counts = counts
        self._members = {key: words for key, words in members.items() if len(words) > 1}
        self._weights = {key: [counts[word] for word in words] for key, words in self._members.items()}

    @staticmethod
    def _key(word: str, count: int) -> tuple[str, int]:
        return word[-3:] if len(word) > 5 else word[-1:], int(math.log(count, 4))

    def draw(self, word: str, chance: random.Random) -> str | None:
        """A word of the same class, as likely as it is frequent; None where there is no other."""
        word = word.casefold()
        count = self._counts.get(word)
        members = self._members.get(self._key(word, count)) if count else None
        if not count or not members:
            return None
        drawn = chance.choices(members, self._weights[self._key(word, count)])[0]
        return None if drawn == word else drawn


class UnseenWords:
    """Words of a language that some texts lack, drawn as often as they are met in it.

    Args:
        vocabulary: Words of the language, the most frequent first; a word's frequency is taken to be one
            over its rank (Zipf's law).
        counts: The words of the texts, in lower case.
    """

    def __init__(self, vocabulary: Iterable[str], counts: Mapping[str, int]) -> None:
        language = dict.fromkeys(word.casefold() for word in vocabulary if is_replaceable(word))
        ranks = {word: rank for rank, word in enumerate(language, 1) if word not in counts}
        self._words = list(ranks)
        self._weights = list(itertools.accumulate(1 / rank for rank in ranks.values()))

    def draw(self, word: str, chance: random.Random) -> str | None:
        """One of them for any word; None where there is none."""
        del word
        return chance.choices(self._words, cum_weights=self._weights)[0] if self._words else None


def replace_drawn(
    words: Sequence[str], others: WordClasses | UnseenWords, p: float, chance: random.Random
) -> list[str]:
    """Words, each of them that carries content replaced by one of the `others` with probability p.

    With `WordClasses` and p_pos, this is Tang et al.'s replacement by the same part of speech.
    """
    made = list(words)
    for index, word in enumerate(words):
        parts = core_of(word)
        if parts is not None and is_replaceable(parts[1]) and chance.random() < p:
            drawn = others.draw(parts[1], chance)
            made[index] = parts[0] + like_case(drawn, parts[1]) + parts[2] if drawn else word
    return made


def count_words(texts: Iterable[Texts]) -> Counter[str]:
    """How often every replaceable word occurs, in lower case."""
    counts: Counter[str] = Counter()
    for example in texts:
        for text in example:
            for word in words_of(text):
                parts = core_of(word)
                if parts is not None and is_replaceable(parts[1]):
                    counts[parts[1].casefold()] += 1
    return counts


@dataclass(frozen=True)
class Rates:
    """How much an operation changes.

    Args:
        replace: p_t of TinyBERT: probability that a word is replaced.
        mask: p_mask of Tang et al.: probability that a word is masked.
        word_class: p_pos of Tang et al.: probability that a word is replaced by one of its class.
        unseen: Probability that a word of content is replaced by one that no text has.
        span: Least and largest share of a text that a span keeps.
        twin: Probability that one text of a pair stands on both sides.
    """

    replace: float = 0.4
    mask: float = 0.1
    word_class: float = 0.1
    unseen: float = 0.2
    span: tuple[float, float] = (0.25, 0.9)
    twin: float = 0.25


@dataclass
class Augmenter:
    """Makes new examples of old ones.

    Args:
        texts: The examples to start from, without any of valid or test.
        candidates: For every example and each of its texts; needed by `replace` alone.
        rates: How much an operation changes.
        mask: The teacher's mask token, needed by `mask` alone.
        vocabulary: Words of the language, the most frequent first, needed by `unseen` alone.
    """

    texts: Sequence[Texts]
    candidates: Sequence[Sequence[Candidates]] = ()
    rates: Rates = field(default_factory=Rates)
    mask: str = ""
    vocabulary: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._words = [[words_of(text) for text in example] for example in self.texts]
        counts = count_words(self.texts)
        self._classes = WordClasses(counts)
        self._unseen = UnseenWords(self.vocabulary, counts)

    def make(self, operation: Operation, index: int, chance: random.Random) -> Texts:
        """One new example from the one at `index`; it may come out as it was."""
        if operation == "crossover":
            return self._crossed(index, chance)
        words = self._words[index]
        taken, changed = (0,), (0,)
        if len(words) == 2:
            taken, changed = (0, 1), chance.choice(((0,), (1,), (0, 1)))
            if chance.random() < self.rates.twin:
                taken, changed = chance.choice(((0, 0), (1, 1))), chance.choice(((0,), (1,)))
        made = (
            self._changed(operation, index, side, chance) if place in changed and words[side] else words[side]
            for place, side in enumerate(taken)
        )
        return tuple(" ".join(text) for text in made)

    def _changed(self, operation: Operation, index: int, side: int, chance: random.Random) -> list[str]:
        words, rates = self._words[index][side], self.rates
        if operation == "replace":
            return replace_words(words, self.candidates[index][side], rates.replace, chance)
        if operation == "mask":
            return mask_words(words, rates.mask, self.mask, chance)
        if operation == "class":
            return replace_drawn(words, self._classes, rates.word_class, chance)
        if operation == "unseen":
            return replace_drawn(words, self._unseen, rates.unseen, chance)
        return span_of(words, rates.span, chance)

    def _crossed(self, index: int, chance: random.Random) -> Texts:
        """Two texts crossed; of a pair: the other order, another partner, or one side crossed."""
        words, other = self._words[index], self._words[chance.randrange(len(self._words))]
        if len(words) == 1:
            return (" ".join(crossover(words[0], other[0], chance)),)
        first, second = words
        way = chance.choice(("swap", "partner", "partner", "first", "second"))
        if way == "swap":
            first, second = second, first
        elif way == "partner":
            second = other[1]
        elif way == "first":
            first = crossover(first, other[0], chance)
        else:
            second = crossover(second, other[1], chance)
        return " ".join(first), " ".join(second)


def augmented(
    augmenter: Augmenter,
    operations: Mapping[Operation, float],
    samples: int,
    held_out: Iterable[Texts],
    seed: int,
) -> Iterator[tuple[Operation, Texts | None]]:
    """N new examples of every old one, an example of each in turn, so that any beginning covers all.

    Args:
        augmenter: Makes an example.
        operations: How often each is drawn, relative to the others.
        samples: N of TinyBERT's algorithm 1: tries for each example.
        held_out: Examples of valid and test, which never come out, in whatever case, spacing or order.
        seed: Of everything random.

    Yields:
        The operation and what it made; None where that is nothing new.
    """
    chance = random.Random(seed)
    seen = {normalised(example) for example in augmenter.texts}
    for example in held_out:
        seen |= {normalised(example), normalised(example[::-1])}
    names, weights = list(operations), list(operations.values())
    order = list(range(len(augmenter.texts)))
    for _ in range(samples):
        chance.shuffle(order)
        for index, operation in zip(order, chance.choices(names, weights, k=len(order)), strict=True):
            made = augmenter.make(operation, index, chance)
            plain = normalised(made)
            new = all(plain) and plain not in seen
            seen.add(plain)
            yield operation, made if new else None
