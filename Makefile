# Needs git, make, python3.11 and pip; everything else goes into .venv, at the versions of .ci/constraints.txt.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help install quickstart study open_questions results test faults lint types bench wheel clean
help:  ## what there is
	@grep -hE '^[a-z_]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c .ci/constraints.txt -e '.[dev]'
	touch $@

install: $(STAMP)  ## .venv with pinned versions

quickstart: install  ## a real horizon study to a report, in minutes
	$(BIN)/wa run sweeps/quickstart.yaml --out runs/quickstart

STUDIES := speedup generalization horizon decay_length no_decay learning_rate optimizers
study: install  ## every experiment of the paper on the minis, what they share trained once; run again to continue
	$(BIN)/wa run $(STUDIES:%=sweeps/%.yaml) --out runs/study

open_questions: install  ## what the paper leaves open, on the minis
	$(BIN)/wa run sweeps/open_questions.yaml --out runs/open_questions

LOGS ?= runs/algoperf
results: install  ## docs/results.md and its figures, from the two above and AlgoPerf's logs (wa import … -o $(LOGS))
	$(BIN)/python -m analysis.paper runs/study runs/open_questions $(LOGS) docs

test: install  ## the tests, three files at a time; then those that measure time, alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore tests/benchmarks -m 'not cluster'
	$(BIN)/python -m pytest tests/benchmarks

faults: install  ## tests on several Ray nodes, and the table of faults that strike nodes which share nothing
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m cluster
	PYTHONPATH=tests/support $(BIN)/python tests/faults/table.py

LEFTOVERS := '\.(orig|rej|bak|tmp|swp)$$|~$$'
lint: install  ## ruff, import-linter, sizes, and no file that an editor or a merge left behind
	@! git ls-files | grep -E $(LEFTOVERS) || { echo 'lint: tracked leftovers, listed above: git rm them'; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@$(BIN)/python .ci/sizes.py $$(git ls-files '*.py' | grep -v ^tests/)

types: install  ## mypy, strict
	$(BIN)/mypy

bench: install  ## the speed ratios the README quotes
	$(BIN)/python -m benchmarks

wheel: install  ## dist/*.whl
	$(BIN)/python -m build --wheel

clean:  ## remove the environment and build products (runs/ stays)
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
