# Verbs of the project. Each sets up .venv by itself, once, and again only if its requirements change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := pyproject.toml constraints.txt
PEERS := saelens dictionary_learning sparsify saedashboard delphi
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: atlas test quick lint bench peers clean

atlas: $(VENV)/installed  ## text to a browsable atlas of labelled features, on the embedded model
	$(BIN)/sae run configs/embedded.yaml
	$(BIN)/sae browse configs/embedded.yaml

test: $(VENV)/installed-dev  ## the whole suite
	$(PYTEST)

quick: $(VENV)/installed-dev  ## what is not slow of it
	$(PYTEST) -m "not slow"

lint: $(VENV)/installed-dev  ## format, style, imports, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

bench: $(VENV)/installed peers  ## every benchmark, and the tables in docs/ and README.md from their results
	$(BIN)/python -m benchmarks.harvest
	$(BIN)/python -m benchmarks.atlas
	$(BIN)/python -m benchmarks.report

peers: $(PEERS:%=.peers/%/installed)  ## what benchmarks compare with

clean:  ## everything that was made here
	rm -rf $(VENV) .peers runs build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: $(VENV)/bin/python $(REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

.peers/%/installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install --quiet --requirement $<
	for bare in $(wildcard benchmarks/peers/$*.bare.txt); do \
		.peers/$*/bin/python -m pip install --quiet --no-deps --requirement $$bare; done
	# some name it, nothing here uses it, and beside a CPU build of torch it breaks the import of transformers
	.peers/$*/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@
