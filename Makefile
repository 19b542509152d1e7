# Everything starts here: `make demo`, `make dev`, `make test`. Each target installs and starts what it needs.
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.ready
SERVICES := compute-api compute-worker orchestrator-api storage-api
IMAGES := $(SERVICES:%=%-docker)
EXECUTABLES := $(foreach service,$(SERVICES),$(service)/target/$(service))

.PHONY: help setup demo dev env up stop down test test-artifacts test-compose test-faults test-hostile soak fuzz unit lint lock bench clean \
	all-bin $(SERVICES) \
	all-docker $(IMAGES)

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(SETUP): requirements-dev.txt requirements-build.txt setup.cfg pyproject.toml
	@scripts/setup $(VENV)

setup: $(SETUP) ## Make .venv with the locked dependencies

demo: ## Train and score two algorithms on real data, in containers
	@scripts/with-stack $(VENV) $(BIN)/morpheo demo

dev: ## Run the whole stack on this machine
	@scripts/with-stack $(VENV) $(BIN)/morpheo dev

test: ## Run every test
	@scripts/test

env: ## Write .env, with new passwords, for compose.yaml
	@scripts/env

up: ## Start the deployment of compose.yaml (WORKERS=n)
	@scripts/engine --keep scripts/up

stop: ## Stop the deployment; its data stays
	@scripts/compose stop

down: ## Delete the deployment with all its data
	@scripts/down

test-artifacts: ## Test the executables and the images
	@scripts/with-stack $(VENV) $(BIN)/pytest tests/artifacts

test-compose: ## Test the deployment of compose.yaml
	@scripts/with-stack $(VENV) scripts/test-compose

test-faults: ## Kill, stop and cut off every part, case by case
	@scripts/test-faults

test-hostile: ## Run hostile submissions, and look after each what got out, broke or stayed
	@scripts/test-hostile

soak: ## Let jobs flow and things break at random (SECONDS=300, SEED=n)
	@scripts/soak --seconds $(or $(SECONDS),300) $(if $(SEED),--seed $(SEED))

fuzz: $(SETUP) ## Send 10,000 generated requests to the APIs, and as much to the parsers (FUZZ_CASES=n FUZZ_SEED=n)
	@FUZZ_CASES=$(or $(FUZZ_CASES),10000) FUZZ_SEED=$(or $(FUZZ_SEED),$(shell date +%s)) $(BIN)/pytest --timeout 3600 -p no:randomly \
		tests/bad_input/test_generated.py tests/bad_input/test_parsers.py

unit: $(SETUP) ## Run the fast tests, which need no service
	@$(BIN)/pytest tests/unit

all-bin: $(SERVICES) ## Make each service one executable file, SERVICE/target/SERVICE

compute-api: compute-api/target/compute-api ## Make compute-api/target/compute-api
compute-worker: compute-worker/target/compute-worker ## Make compute-worker/target/compute-worker
orchestrator-api: orchestrator-api/target/orchestrator-api ## Make orchestrator-api/target/orchestrator-api
storage-api: storage-api/target/storage-api ## Make storage-api/target/storage-api

# One file for all: its name tells it which service it is.
$(EXECUTABLES): build/morpheo
	@install -D $< $@

build/morpheo: $(SETUP) requirements.txt celeryconfig.py $(shell find morpheo -type f -not -path '*/__pycache__/*')
	@scripts/executable

all-docker: build/wheels/3.11/.ready ## Build the images of all services
	@scripts/engine scripts/service-images $(SERVICES)

compute-api-docker: ## Build the image morpheo/compute-api
compute-worker-docker: ## Build the image morpheo/compute-worker
orchestrator-api-docker: ## Build the image morpheo/orchestrator-api
storage-api-docker: ## Build the image morpheo/storage-api
$(IMAGES): build/wheels/3.11/.ready
	@scripts/engine scripts/service-images $(@:%-docker=%)

build/wheels/%/.ready: $(SETUP) requirements.txt requirements-build.txt
	@scripts/wheels $*

lint: $(SETUP) ## Check style, types, imports and dependencies
	@scripts/lint $(VENV)

lock: ## Write the lock files anew
	@scripts/lock

bench: ## Print the overhead of uploads, downloads and jobs
	@scripts/with-stack $(VENV) scripts/bench

clean: ## Remove what was built here
	@rm -rf $(VENV) build */target *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
