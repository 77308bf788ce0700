# The same tasks as `python3 -m helpers TASK`, for whoever types `make`. TORCH=cu126 and the like name a PyTorch wheel;
# left out, it is the one that fits this machine.
PYTHON ?= python3
TASKS := install course lab test lint browser pictures bench drift

.PHONY: $(TASKS)
$(TASKS):
	$(PYTHON) -m helpers $@

.PHONY: help
help:
	@$(PYTHON) -m helpers --help
