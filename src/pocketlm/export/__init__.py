"""Models to files that other runtimes open."""
