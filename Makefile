# Two commands, each doing its own set-up in .venv: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint clean

# The bake-off, offline: five mechanisms on real text, from one pretrained encoder.
demo: .venv/.demo
	$(BIN)/bakeoff grid studies/demo.yaml
	$(BIN)/bakeoff report runs/demo --output-dir runs/demo-report

test: .venv/.test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/.test
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy

.venv/.demo: pyproject.toml requirements/embedded.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	$(PIP) --no-deps --require-hashes -r requirements/embedded.txt
	touch $@

.venv/.test: .venv/.demo
	$(PIP) --editable '.[test,lint,peers]'
	touch $@

clean:
	rm -rf .venv runs build
