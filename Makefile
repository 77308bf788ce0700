# Each target sets up .venv by itself. TORCH picks the wheel: `TORCH=cu126` (driver 525 and newer), `TORCH=cu130` (580 and
# newer) or `TORCH=cpu` take it from PyTorch's own index, `TORCH=auto` the one of these that the doctor advises for this
# machine; left out, pip takes its usual one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?=
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
INSTALLED := $(VENV)/installed$(TORCH)

.PHONY: course test lab lint bench browser pictures help
course: $(INSTALLED)  ## run the five notebooks on the shipped model and text, then write one report page
	$(BIN)/python -m helpers run

test: lint  ## lint, unit tests, every notebook, and the browser tests where Chromium is
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --ignore=tests/benchmarks --ignore=tests/browser tests helpers
	runs=$$(mktemp -d) && COURSE_RUNS=$$runs $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks \
		&& rm -rf "$$runs"
	$(MAKE) browser

browser: $(INSTALLED)  ## the notebooks and their panels in a real JupyterLab; needs Chromium
	$(BIN)/python -m pytest tests/browser

pictures: browser  ## the README's pictures, taken by the browser tests
	$(BIN)/python tests/browser/pictures.py

lab: $(INSTALLED)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

lint: $(INSTALLED)  ## ruff, and notebooks stored without outputs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

bench: $(INSTALLED)  ## the benchmarks
	$(BIN)/python -m pytest -s tests/benchmarks

help:  ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 16

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/installed*  # another TORCH is about to be replaced: asked for again, it is to be installed again
	$(BIN)/pip install --quiet --constraint constraints.txt pip
	$(if $(filter auto,$(TORCH)),$(BIN)/python -m helpers.environment --wheel)
	$(if $(TORCH),$(BIN)/pip install --quiet $(if $(filter auto,$(TORCH)),\
		$$($(BIN)/python -m helpers.environment --wheel --pip-args),\
		--index-url https://download.pytorch.org/whl/$(TORCH) torch==$(TORCH_VERSION)+$(TORCH)))
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,gpu]'
	touch $@
