"""`python -m pocketlm` is `pocketlm`."""

from pocketlm.cli import main

main()
