"""From the user's files to prepared train, valid and test splits, and from those to batches."""
