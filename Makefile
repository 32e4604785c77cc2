# Two commands are all a newcomer needs; each does its own set-up.
#   make demo   seven sites, a broker, a gateway, three kills; a report to look at
#   make test   everything CI runs
.PHONY: help demo test venv lint types core host bench torture model clean

VENV := .venv
BIN := $(VENV)/bin

help:
	@sed -n 's/^#   //p' Makefile

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt tools/setup.sh
	@sh tools/setup.sh $(VENV)

demo: venv
	@$(BIN)/python -m examples.demo

test: venv lint types core host

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

core: venv
	$(BIN)/python tests/core/run.py
	$(BIN)/micropython tests/core/run.py

host: venv
	$(BIN)/python -m pytest -q

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
