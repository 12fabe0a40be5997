# make run    sets everything up and runs the main job (a quarter of an hour on two quiet cores)
# make test   sets everything up and passes the tests
# EXTRA=gpu   takes vLLM's GPU build instead of its CPU build
EXTRA ?= cpu
PROFILE ?= starter
ROOT ?= runs
ARGS ?=
PYTHON := .venv/bin/python

.PHONY: setup run test lint bench bench-caption bench-caption-scale bench-judge clean

setup:
	@EXTRA=$(EXTRA) bash cluster/setup.sh

run: setup
	$(PYTHON) pipelines/full.py --profile $(PROFILE) --root $(ROOT) $(ARGS)

test: setup
	$(PYTHON) -m ruff check .
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(PYTHON) -m ruff check .

bench: setup
	$(PYTHON) -m benchmarks.train_overhead

bench-caption: setup
	@$(PYTHON) -m benchmarks.caption $(ARGS)

bench-caption-scale: setup
	@$(PYTHON) -m benchmarks.caption_scale $(ARGS)

bench-judge: setup
	@$(PYTHON) -m benchmarks.judge $(ARGS)

clean:
	rm -rf .venv runs
