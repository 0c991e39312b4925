# Everything a newcomer needs: make demo, make test, make lab.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lab lint clean

# The checkpoint in the package, whatever the user's environment names.
demo: $(VENV)/installed
	COSMOS3_CHECKPOINT= $(BIN)/cosmos3-lab generate "a red circle bounces on a blue background; low thuds" --sound \
		--device cpu --out $(CURDIR)/outputs/demo

test: $(VENV)/installed-test lint
	$(BIN)/python -m pytest
	COSMOS3_CHECKPOINT= $(BIN)/python -m pytest --nbmake --nbmake-timeout=120 notebooks

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lab: $(VENV)/installed-lab
	$(BIN)/jupyter lab notebooks/00_quickstart.ipynb

clean:
	rm -rf $(VENV) outputs

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed; try make PYTHON=python3.12'"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# One stamp for each set of extras; pyproject.toml decides what is in them.
$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-lab: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[lab]"
	touch $@

$(VENV)/installed-test: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@
