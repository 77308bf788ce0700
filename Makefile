# make course   run the five notebooks on what is shipped, then one report page
# make test     lint, unit tests, every notebook
# make lab      open the notebooks in JupyterLab
# make lint     ruff, and notebooks stored without outputs
# make bench    the benchmarks
#
# Each sets up .venv by itself. TORCH picks the wheel: `TORCH=cu126` (driver 525 and newer), `TORCH=cu130` (580 and
# newer) or `TORCH=cpu` take it from PyTorch's own index; left out, pip takes its usual one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?=
TORCH_INDEX := $(if $(TORCH),--index-url https://download.pytorch.org/whl/$(TORCH))
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)

.PHONY: course test lab lint bench
course: $(VENV)/installed
	$(BIN)/python -m helpers run

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --ignore=tests/benchmarks tests helpers
	runs=$$(mktemp -d) && COURSE_RUNS=$$runs $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -p no:doctest notebooks \
		&& rm -rf "$$runs"

lab: $(VENV)/installed
	$(BIN)/jupyter lab notebooks

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/nbstripout --verify --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

bench: $(VENV)/installed
	$(BIN)/python -m pytest -s tests/benchmarks

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt pip
	$(if $(TORCH),$(BIN)/pip install --quiet $(TORCH_INDEX) torch==$(TORCH_VERSION))
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,gpu]'
	touch $@
