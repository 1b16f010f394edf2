# make demo: set up, then the main job. make test: set up, then the tests. Nothing else is needed before either.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

# make test-fast: the tests that answer within 90 seconds; make test has them all.
# make docs: the documentation as a site in site/. make wheel: the package in dist/, recipes included.
.PHONY: demo test test-fast check docs notebook wheel bench gpu crash full-disk mutants format clean

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
	$(BIN)/ruff check src tests docs examples
	$(BIN)/ruff format --check src tests docs examples
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(READY)
	$(BIN)/python -c "import zensical" 2>/dev/null || $(BIN)/pip install --quiet -e '.[docs]'
	$(BIN)/python docs/generate.py --check
	$(BIN)/zensical build --clean --strict

notebook: $(READY)
	$(BIN)/python examples/execute.py examples/first_run.ipynb

wheel: $(READY)
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	@for recipe in recipes/*.toml; do \
	    $(BIN)/python -m zipfile -l dist/whet-*.whl | grep -q "recipes/$$(basename $$recipe)" \
	        || { echo "not in the wheel: $$recipe"; exit 1; }; \
	done
	@ls dist/whet-*.whl

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
	$(BIN)/ruff check --fix src tests docs examples
	$(BIN)/ruff format src tests docs examples

clean:
	rm -rf .venv site dist .cache .pytest_cache .ruff_cache .hypothesis
