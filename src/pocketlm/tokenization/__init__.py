"""Tokenizers re-made for small vocabularies."""
