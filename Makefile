SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
RECIPE ?= digits
STORAGE ?= runs
OVERLAY ?= autoscaling
ARGS ?=
BIN := .venv/bin
TIER := not fault and not browser and not kubernetes
# what an edit most often breaks, a minute on one quiet core: no Ray, no MLflow, no training
QUICK := $(addprefix tests/,activations attacks utils documentation/test_architecture.py \
           evaluation/engine/test_restart_queue.py evaluation/engine/test_slots.py \
           evaluation/test_metrics.py evaluation/test_anytime_intervals.py \
           sweep/test_config.py sweep/test_recipes.py sweep/test_record_keys.py \
           training/optimization/test_schedules.py training/test_training_settings.py \
           integrations/command_line/test_option_values.py)
SLOW := torchattacks or compiles
READY := .venv/.ready
RAY_IMAGE := $(shell sed -n 's/^RAY_IMAGE=//p' cluster/versions.env)
MLFLOW_IMAGE := $(shell sed -n 's/^MLFLOW_IMAGE=//p' cluster/versions.env)
PYTHON_IMAGE := $(shell sed -n 's/^PYTHON_IMAGE=//p' cluster/versions.env)
PYTHON_IMAGE_DIGEST ?= $(shell sed -n 's/^PYTHON_IMAGE_DIGEST=//p' cluster/versions.env)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup sweep test test-quick test-faults test-browser lint format ui bench docs release lock clean \
        cluster-validate image images-local cluster-apply laptop laptop-kind submit ray-up ray-down cluster-local \
        kubernetes-up kubernetes-down test-kubernetes

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do printf '  make %-18s %s\n' "$$name" "$$text"; done

setup: $(READY) ## make .venv with everything pinned in requirements.lock

# bytecode is compiled here once: Ray starts many processes, and each would otherwise compile torch and MLflow on import
$(READY): requirements.lock requirements-no-deps.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sat_ray needs Python >= 3.11: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --require-hashes -r requirements-no-deps.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --editable .
	touch $@

sweep: setup ## run the SAT sweep end to end (RECIPE=digits, ARGS="--training.epochs 10")
	$(BIN)/python pipelines/sweep.py $(RECIPE) --storage "$(STORAGE)" $(ARGS)

test: setup ## run the tests: those that start Ray in one process, the others beside it
	@mkdir -p .cache; echo "tests with Ray here, the others in .cache/tests.log"; \
	$(BIN)/python -m pytest -m "$(TIER) and not ray" $(ARGS) > .cache/tests.log 2>&1 & others=$$!; \
	with_ray=0; $(BIN)/python -m pytest -m "$(TIER) and ray" $(ARGS) || with_ray=$$?; \
	rest=0; wait $$others || rest=$$?; cat .cache/tests.log; \
	for status in $$with_ray $$rest; do [ $$status = 0 ] || [ $$status = 5 ] || exit $$status; done; [ $$with_ray$$rest != 55 ]

test-quick: setup ## what an edit most often breaks, within a minute
	$(BIN)/python -m pytest -x -m "$(TIER) and not ray" -k "not ($(SLOW))" $(QUICK) $(ARGS)

test-faults: setup ## slower tests: a Ray of several nodes, a second search method
	$(BIN)/python -m pytest -m fault $(ARGS)

test-browser: setup ## drive a real browser (needs chromium)
	$(BIN)/python -m pytest -m browser $(ARGS)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: setup ## open MLflow on the sweep's store, http://127.0.0.1:5000 (STORAGE=runs)
	storage="$$($(BIN)/python -c 'import os, sys; print(os.path.abspath(sys.argv[1]))' "$(STORAGE)")"; \
	test -f "$$storage/mlflow.db" || { echo "$$storage has no mlflow.db: run a sweep there first, or name another folder with STORAGE=FOLDER"; exit 2; }; \
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 2 \
	  --backend-store-uri "sqlite:///$$storage/mlflow.db" --default-artifact-root "$$storage/mlartifacts"

bench: setup ## measure evaluation, agreement, training, loading and the pipeline (ARGS=--quick)
	for name in evaluation agreement training loading pipeline; do $(BIN)/python benchmarks/$$name.py --json .cache/benchmarks/$$name.json $(ARGS); done

docs: setup ## build the documentation into site/
	$(BIN)/zensical build --strict --clean

release: setup ## build sdist and wheel into dist/ and check what they hold
	rm -rf dist
	$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python --out-dir dist
	RELEASE=dist $(BIN)/python -m pytest tests/integrations/command_line/test_package.py

lock: setup ## resolve requirements.lock again from requirements*.txt
	$(BIN)/uv pip compile --quiet --no-header --generate-hashes requirements.txt requirements-dev.txt --output-file requirements.lock
	grep -v '^ *--hash\|^ *#' requirements.lock | sed 's/ \\$$//' > .cache/constraints.txt
	$(BIN)/uv pip compile --quiet --no-header --no-annotate --generate-hashes --python-version 3.11 \
	  --constraint .cache/constraints.txt requirements.txt --output-file cluster/images/requirements-ray.txt

clean: ## remove what make made, but never runs/
	rm -rf .venv site dist build .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

cluster-validate: setup ## check every manifest offline
	$(BIN)/python -m pytest -rs tests/cluster/test_cluster_manifests.py

image: ## build and push the Ray and MLflow images (REGISTRY=registry.example.com)
	@test -n "$(REGISTRY)" || { echo "make image REGISTRY=registry.example.com"; exit 2; }
	@test -n "$(PYTHON_IMAGE_DIGEST)" || { echo "cluster/versions.env: PYTHON_IMAGE_DIGEST is empty; look it up there"; exit 2; }
	docker build -f cluster/images/Dockerfile.ray --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)@$(PYTHON_IMAGE_DIGEST) -t $(REGISTRY)/$(RAY_IMAGE) .
	docker build -f cluster/images/Dockerfile.mlflow --build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)@$(PYTHON_IMAGE_DIGEST) -t $(REGISTRY)/$(MLFLOW_IMAGE) cluster/images
	docker push $(REGISTRY)/$(RAY_IMAGE)
	docker push $(REGISTRY)/$(MLFLOW_IMAGE)

images-local: ## build both images for a cluster on this machine, with Docker or buildah
	cluster/images/local.sh

# --force-conflicts: Ray's autoscaler writes replicas into the groups and owns them from then on. An apply sets them
# back, so worker pods end: not while a sweep runs.
cluster-apply: cluster-validate ## put an overlay on the current Kubernetes cluster (OVERLAY=mine; TAGS=1: images without digests)
	@mkdir -p .cache
	kubectl kustomize cluster/overlays/$(OVERLAY) > .cache/$(OVERLAY).yaml
	test -n "$(TAGS)" || $(BIN)/python -m cluster.checks.pinned .cache/$(OVERLAY).yaml
	$(BIN)/python -m cluster.commands.preflight .cache/$(OVERLAY).yaml
	kubectl apply --server-side --force-conflicts -f .cache/$(OVERLAY).yaml

laptop: ## put the overlay laptop, with its secrets, on the current Kubernetes cluster, which has the images
	cluster/commands/laptop.sh prepare
	$(MAKE) cluster-apply OVERLAY=laptop TAGS=1
	kubectl -n sat-ray rollout status deployment/mlflow --timeout=10m
	kubectl -n sat-ray wait raycluster/sat-ray --for=condition=HeadPodReady --timeout=10m

laptop-kind: ## make a Kubernetes cluster with kind, load the images, and put the overlay laptop on it
	cluster/commands/laptop.sh kind
	$(MAKE) laptop

submit: setup ## run RECIPE on the Kubernetes cluster
	$(BIN)/python -m cluster.commands.submit $(RECIPE) $(ARGS)

ray-up: setup ## start a Ray cluster on AWS without Kubernetes
	@test -s ~/.ray/auth_token || { echo "put a token into ~/.ray/auth_token (cluster/README.md)"; exit 2; }
	$(BIN)/python -m cluster.checks.pinned cluster/aws/ray-up.yaml
	RAY_AUTH_MODE=token $(BIN)/ray up --yes cluster/aws/ray-up.yaml

ray-down: setup ## stop it
	RAY_AUTH_MODE=token $(BIN)/ray down --yes cluster/aws/ray-up.yaml

kubernetes-up: setup ## start a Kubernetes on this machine (root, Go; the first time takes an hour)
	$(BIN)/python -m tests.kubernetes.machine up

kubernetes-down: setup ## end it and remove what it wrote; the built binaries stay
	$(BIN)/python -m tests.kubernetes.machine down

test-kubernetes: setup ## run the product on the Kubernetes of kubernetes-up
	$(BIN)/python -m pytest -m kubernetes $(ARGS)

cluster-local: setup ## start a Ray of three nodes on this machine
	RAY=$(BIN)/ray cluster/local.sh up 2 1
