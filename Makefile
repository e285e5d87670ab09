# Everything a person does with this repository. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NODE_STAMP := $(VENV)/node/.installed
SEEDS ?= 100
FROM ?= 0
SEED ?= 1
COUNT ?= 40
DAMAGES ?= 2500

.PHONY: help run install test lint unit cluster sim damage soak mutants generate format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("kvserver needs Python 3.11 or newer; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[server,bench]' --group dev
	touch $(STAMP)

$(NODE_STAMP): Makefile
	mkdir -p $(VENV)/node
	! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(VENV)/node etcd3@1.1.2 \
		|| echo 'npm could not install etcd3: its test will be skipped'
	touch $(NODE_STAMP)

install: $(STAMP) ## set up .venv with the server, the client, the bench and all that the tests need

run: $(STAMP) ## a three-node cluster on loopback: a failover shown, then yours until Ctrl-C
	$(BIN)/kvbench demo

test: lint unit cluster ## all checks

lint: $(STAMP) ## style, types, import rules, freshness of generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check
	$(BIN)/python client/unasync.py --check

unit: $(STAMP) ## tests without processes
	$(BIN)/pytest -m 'not cluster' -n 2

cluster: $(STAMP) $(NODE_STAMP) ## tests with real processes
	$(BIN)/pytest -m cluster -n 2 --dist loadfile

sim: $(STAMP) ## simulated clusters under faults: SEEDS=1000 of each kind, FROM=0; a bad seed is told how to replay
	$(BIN)/python tests/sim/explore.py --seeds $(SEEDS) --from $(FROM)

damage: $(STAMP) ## disks hurt in every way: DAMAGES=2500 of SEED=1, then 60 under three real nodes
	$(BIN)/python tests/damage/explore.py --damages $(DAMAGES) --seed $(SEED)
	$(BIN)/pytest tests/cluster/test_damage.py --damages 60 --damage-seed $(SEED) --log-cli-level=INFO

soak: $(STAMP) ## a quarter of an hour of faults of every kind under mixed load
	$(BIN)/kvbench soak --minutes 15

mutants: $(STAMP) ## small changes of the server that no test notices: COUNT=40 of them, drawn from SEED=1
	$(BIN)/python tests/mutants.py --seed $(SEED) --count $(COUNT)

generate: $(STAMP) ## protobuf code from the .proto files, the plain client from the asyncio one
	$(BIN)/python protos/generate.py
	$(BIN)/python client/unasync.py

format: $(STAMP) ## let ruff put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove what the targets above made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
