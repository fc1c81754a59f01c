"""What a language model makes of text that it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

from pocketlm.artifact import Artifact
from pocketlm.errors import RecipeError
from pocketlm.models.decoder import load_decoder, perplexity
from pocketlm.prune.decoder import corpus_and_held_out
from pocketlm.stage import Context


@dataclass(frozen=True)
class Perplexity:
    """Measure a language model on the text held out, before and after it was made smaller.

    Args:
        pieces: So many are read, from the first.
        length: Pieces of a window; the text is cut into windows that do not overlap.
    """

    pieces: int = 50_000
    length: int = 512

    def __post_init__(self) -> None:
        if not 2 <= self.length <= self.pieces:
            raise RecipeError(
                f"length={self.length} and pieces={self.pieces} are out of range; "
                "allowed: length from 2, and no fewer pieces than that"
            )

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        """Adds the figure `perplexity`, of the part `decoder` or else of the model that came.

        Raises:
            TeacherError: the text is shorter than one window.
        """
        decoder = load_decoder(artifact.parts.get("decoder", artifact.parts["teacher_source"]))
        _, texts = corpus_and_held_out(artifact)
        read = decoder.ids(texts)[: self.pieces]
        with context.progress.task("read the text held out", 1) as advance:
            found = perplexity(decoder, read, self.length)
            advance(1)
        return artifact.with_figures(perplexity=found, perplexity_pieces=len(read))
