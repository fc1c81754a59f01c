"""Pockets at work: onnxruntime, tokenizers and numpy, and no torch."""

from pocketlm.runtime.pocket import Pocket, Prediction, Span, load

__all__ = ["Pocket", "Prediction", "Span", "load"]
