# `make demo` and `make test` start from a bare checkout: they make .venv, install, and run.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint docs clean install

demo: $(INSTALLED)  ## Edit 100 facts of the embedded model, and compare it with the unedited one.
	$(BIN)/editbench run --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(INSTALLED)  ## Run the whole default suite.
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

lint: $(INSTALLED)  ## Style, types and layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)  ## Build the documentation into docs/_build.
	$(BIN)/pip install --quiet --constraint constraints.txt --group docs
	$(BIN)/sphinx-build --fail-on-warning --quiet docs docs/_build

install: $(INSTALLED)

# torch first and alone: a range that admits a newer release can fetch gigabytes of CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt packages/memit-core/pyproject.toml packages/editbench/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --group dev \
		--editable 'packages/memit-core[files]' --editable packages/editbench
	touch $@

clean:  ## Remove everything that make made.
	rm -rf .venv docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
