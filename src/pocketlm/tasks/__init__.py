"""What a model answers: labels, words with tags, spans of a context; and how that is scored."""
