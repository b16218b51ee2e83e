# The two commands of the README are `make demo` and `make test`; both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-ci test-all test-slow test-wheel notebooks check docs dist bench gpu-pack clean

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# What the demo needs and no more; a later `make test` adds the rest to the same environment.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing torch, transformers, peft and what the demo needs into $(VENV): a minute or two, the first time only."
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[demo]"
	@touch $@

demo: $(VENV)/.demo
	@$(BIN)/ailora demo

# What to run before a commit: five minutes. Two tests at a time, each on one thread, fill two cores.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not ci and not slow" -n $(WORKERS) --dist worksteal

# What CI runs beyond `make test`: every naming convention, kills, processes, browsers.
test-ci: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "ci and not slow" -n $(WORKERS) --dist worksteal

# Every test there is: an hour and more.
test-all: $(VENV)/.installed
	HYPOTHESIS_PROFILE=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# The built wheel in environments of its own, one of them without the extras.
test-wheel: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow tests/test_package.py

# They train for a minute or two: too long for `make test`.
notebooks: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow tests/docs/test_notebooks.py

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The site, in out/site; it opens from disk. Needs no network.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What is released, in dist/.
dist: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

bench: $(VENV)/.installed
	for script in benchmarks/bench_*.py; do $(BIN)/python $$script || exit 1; done

# What `python benchmarks/gpu/run.py` needs on a machine with a GPU and without a network, in .gpu/.
gpu-pack: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu/pack.py

clean:
	rm -rf $(VENV) out .gpu dist .pytest_cache .ruff_cache .hypothesis
