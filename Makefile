# Everything runs from the virtual environment that `make env` makes; nothing else is needed but Python 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help env demo test bench kills chaos lint gen gen-check release-protos fmt

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

env: $(STAMP) ## make the virtual environment, nothing else

demo: env ## run the main job: six nodes, two hubs, one private set intersection
	$(BIN)/tdn demo

test: env lint ## run every check and every test
	$(BIN)/python -m pytest

kills: env ## kill every node on the way of a file at 20, 50 and 80 %, and every two of them: about 15 minutes
	$(BIN)/python -m tests.chaos.matrix

chaos: env ## 300 random kills over transfers and jobs; KILLS=n SEED=n to choose
	$(BIN)/python -m tests.chaos.chaos --kills $(or $(KILLS),300) $(if $(SEED),--seed $(SEED))

bench: env ## measure channel and relay; JSON and pictures go to bench/out
	$(BIN)/python -m bench.channel
	$(BIN)/python -m bench.relay

lint: env gen-check ## formatting, types, architecture and protocol rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf breaking proto --against proto/released.binpb

gen: env ## write generated files again: stubs, reason enum, reference pages
	$(BIN)/python proto/generate.py
	$(BIN)/python docs/generate.py

gen-check: env ## fail when a generated file is out of date
	$(BIN)/python proto/generate.py --check
	$(BIN)/python docs/generate.py --check

release-protos: env ## note the protocol of this release; later changes must stay compatible with it
	$(BIN)/buf build proto --output proto/released.binpb

fmt: env ## format the code
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
