PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup check test test-web test-executorch test-llama web docs bench bench-distill bench-tickets bench-prune bench-quantize fuzz tables demo

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 24

setup: .venv/.ready  ## .venv with the package, its extras and the tools, at the versions of constraints.txt

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo 'pocketlm needs Python 3.11 or newer; name one: make setup PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo 'Python lacks its venv module; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@echo 'Installing into .venv: some minutes the first time, seconds afterwards.'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[all,dev]'
	@touch $@

check: setup  ## lint, types, import contracts, spelling, tables up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/codespell
	@$(BIN)/python scripts/readme_tables.py --check
	@$(BIN)/pyright

test: setup  ## the quick tests, a file at a time on every core
	@$(BIN)/python -m pytest -n auto --dist loadfile

test-web: setup web  ## pockets in a page, in the Chromium of this machine
	@$(BIN)/python -m pytest tests/web

test-executorch: .venv-executorch/.ready  ## pockets as programs for phones, in an environment of their own
	@.venv-executorch/bin/python -m pytest -n auto tests/export/test_executorch.py

# It sees what .venv has, and holds nothing but what ExecuTorch wants besides.
.venv-executorch/.ready: .venv/.ready
	@test -x .venv-executorch/bin/python || $(PYTHON) -m venv .venv-executorch
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(.venv-executorch/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	@.venv-executorch/bin/python -m pip install -q -c constraints.txt -e '.[executorch]'
	@touch $@

test-llama: setup  ## exported language models under llama.cpp, which is built first: 7 minutes on two cores
	@$(BIN)/python -m pip install -q -c constraints.txt llama-cpp-python
	@$(BIN)/python -m pytest -m slow tests/export/test_llama_cpp.py

web:  ## the libraries of the example page
	@npm ci --prefix examples/web --ignore-scripts --no-audit --no-fund --loglevel=error

fuzz: setup  ## 10 minutes of broken pockets for the reader
	@$(BIN)/python -m pip install -q -c constraints.txt atheris
	@$(BIN)/python tests/fuzz/pocket.py $(ARGS)

docs: setup  ## the docs site, in site/
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'The site is in site/index.html.'

demo: setup  ## shrink a real teacher on real data, in minutes
	@$(BIN)/pocketlm shrink

bench: setup  ## measure the demo and your own data, then rewrite the tables
	@$(BIN)/python benchmarks/run.py demo own-data
	@$(BIN)/python scripts/readme_tables.py

bench-distill: setup  ## every distilled row, or those of ARGS='--rows point-a --tasks critics'
	@$(BIN)/python benchmarks/run.py distill $(ARGS)
	@$(BIN)/python scripts/readme_tables.py

bench-tickets: setup  ## lottery tickets on six tasks, some hours; ARGS='--tasks critics' for some of them
	@$(BIN)/python benchmarks/tickets.py $(ARGS)
	@$(BIN)/python scripts/readme_tables.py

bench-prune: setup  ## structured pruning, networks that read images, a sparse decoder; ARGS='--tasks critics' for some of them
	@$(BIN)/python benchmarks/run.py prune $(ARGS)
	@$(BIN)/python benchmarks/vision.py
	@$(BIN)/python benchmarks/decoders.py
	@$(BIN)/python scripts/readme_tables.py

bench-quantize: setup  ## few bits, shared values, the LeNets as files, and the runtime; ARGS='--tasks critics' for some of them
	@$(BIN)/python benchmarks/run.py quantize $(ARGS)
	@$(BIN)/python benchmarks/deep_compression.py
	@$(BIN)/python benchmarks/runtime.py
	@$(BIN)/python scripts/readme_tables.py

tables: setup  ## rewrite the tables of README and docs from benchmarks/results
	@$(BIN)/python scripts/readme_tables.py
