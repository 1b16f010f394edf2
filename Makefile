# make demo: set up, then the main job. make test: set up, then the tests. Nothing else is needed before either.
# make docs: the documentation as a site, in site/.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

# make test-fast: the tests that answer within 90 seconds; make test has them all.
.PHONY: demo test test-fast check bench gpu crash full-disk mutants format clean

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/whet run recipes/r1-zero-mini.toml --overwrite

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

check: $(READY)
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(READY)
	$(BIN)/whet bench

gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py

crash: $(READY)
	KILLS=$(or $(KILLS),200) $(BIN)/python tests/faults/crash.py

full-disk: $(READY)
	SIZES=$(or $(SIZES),40) $(BIN)/python tests/faults/full_disk.py

mutants: $(READY)
	$(BIN)/python tests/mutants.py

format: $(READY)
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
