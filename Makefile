# Two commands are all a newcomer needs; each does its own set-up.
#   make demo      seven sites, a broker, a gateway, three kills; a report to look at
#   make test      everything CI runs
# More:
#   make bench     every benchmark, beside its peer; exit 1 below a goal
#   make torture   an hour of fate for agents and gateway, a million damaged models
#   make fuzz      the damaged models alone
#   make micropython  build MicroPython: .mpy compiler, 32-bit interpreter, QEMU firmware
#   make natmod    build the native TFLite kernels for boards and for this machine
#   make hil       the agent on emulated boards and a small Arm computer: cuts of every kind
#   make hil-soak HOURS=n   the same boards, for hours
#   make core32    the core's tests on a 32-bit MicroPython with 32-bit floats, as on a board
#   make models    train and write the shipped model again
#   make clean     remove what the above made
.PHONY: help demo test venv debian lint types core core32 micropython natmod host bench
.PHONY: torture fuzz models clean firmware boards hil hil-soak

VENV := .venv
BIN := $(VENV)/bin

help:
	@sed -n 's/^#   //p' Makefile

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt tools/setup.sh
	@sh tools/setup.sh $(VENV)

debian:
	@sh tools/debian.sh

# The demo brings its own broker, so it goes on without Debian's packages.
demo: venv
	@$(BIN)/python -m examples.demo

test: venv debian lint types core core32 host boards

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy
	$(BIN)/python tools/types_micropython.py

# The same files on both interpreters.
core: venv
	$(BIN)/python tests/core/run.py
	$(BIN)/micropython -X heapsize=16M tests/core/run.py

micropython: venv
	@sh tools/micropython.sh
	@sh tools/debian.sh qemu-system-arm qemu-system-misc
	$(BIN)/python -m pytest -q tests/firmware

natmod:
	@sh tools/natmod.sh

core32:
	@sh tools/micropython.sh mpy-cross micropython32
	.cache/micropython/micropython32 -X heapsize=8M tests/core/run.py

host: venv debian
	@sh tools/natmod.sh x64
	$(BIN)/python -m pytest -q -n auto --dist loadfile

# Emulated boards with flash that remembers; see hw_tests/boards/README.md.
firmware:
	@sh tools/debian.sh mosquitto qemu-system-arm qemu-system-misc
	@sh tools/micropython.sh mpy-cross qemu-rv32.elf qemu-m3.elf
	@sh tools/natmod.sh rv32imc armv7m

boards: venv firmware
	HIL_SEED=$${HIL_SEED:-1} $(BIN)/python -m pytest -q -n auto --dist loadfile -m fast hw_tests

# One more worker than cores: machines under test wait for lines and timers most of the time.
hil: venv debian firmware
	@sh tools/debian.sh debootstrap e2fsprogs
	$(BIN)/python hw_tests/pi/image.py
	$(BIN)/python -m pytest -q -n $$(($$(nproc) + 1)) --dist worksteal --durations 20 -m "fast or full" hw_tests
	$(BIN)/python hw_tests/report.py --check

HOURS ?= 1
hil-soak: venv firmware
	HOURS=$(HOURS) $(BIN)/python -m pytest -q -m soak hw_tests

bench: venv debian
	@for b in benchmarks/[a-z]*.py; do echo "== $$b"; $(BIN)/python $$b --check || bad=1; done; exit $${bad:-0}

# New random worlds each time; a failure prints what repeats it.
torture: venv fuzz
	WIRE_RANDOM=1 WIRE_EXAMPLES=1500 WIRE_STEPS=60 $(BIN)/python -m pytest -q tests/host/test_wire.py

fuzz: venv
	$(BIN)/python -m tests.zoo.fuzz --count 1000000

models: venv
	$(BIN)/python models/train.py

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
