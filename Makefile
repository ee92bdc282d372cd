# Two commands do everything on a machine that has Python, make and a network:
#   make train      sets up .venv, then trains on the embedded default data set
#   make test       sets up .venv, then lints, type-checks and tests
# And a third: make bench measures how fast this machine is (make bench ARGS=--quick: does it work at all?).
# make reliability runs the slow tests, injects every fault there is (an hour on two cores), writes RELIABILITY.md.
# Tests run on two processes: make test WORKERS=8, or 0 for none. make test-slow runs those that take more than ten seconds each.
# ARGS passes on: make train ARGS="+experiment=sngan_cifar setting=B"
# An older CUDA driver: make train TORCH='"torch<2.11" "torchvision<0.26"'
PYTHON ?= python3
ARGS ?=
TORCH ?= "torch==2.15.*" "torchvision==0.29.*"
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup train test test-slow lint bench reliability
setup: $(READY)

train: $(READY)
	@$(BIN)/ganlab train $(ARGS)

bench: $(READY)
	@$(BIN)/python scripts/benchmark.py $(ARGS)

reliability: $(READY)
	@$(BIN)/python scripts/reliability.py $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)  # tests fork; a forked child has no thread pool

test-slow: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n $(WORKERS) $(ARGS)

$(READY): pyproject.toml $(wildcard $(CONSTRAINTS)) Makefile
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@test -x $(BIN)/uv || $(BIN)/pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode \
	  $(if $(wildcard $(CONSTRAINTS)),-c $(CONSTRAINTS)) $(TORCH) -e '.[dev]'
	@touch $@
