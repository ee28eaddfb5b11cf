# `make quickstart` and `make test` only need Python >= 3.10; see `make help`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env quickstart test test-slow robust gpu parity docs zoo lint lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: $(INSTALLED) ## create or refresh .venv from the locked requirements

# Installs again only when a requirement changes.
$(INSTALLED): requirements/env.txt requirements/detectron2.txt requirements/peers.txt setup.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --requirement requirements/env.txt
	$(PY) -c "import detectron2.modeling" 2>/dev/null || $(MAKE) --no-print-directory detectron2
	$(PY) -m pip install --no-deps --require-hashes --requirement requirements/peers.txt
	$(PY) -m pip install --no-deps --no-build-isolation --editable .
	touch $@

# The wheel contains a stray top-level package called `tools`, which would shadow everybody's own.
.PHONY: detectron2
detectron2:
	site=$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	$(PY) -m pip install --no-deps --only-binary=:all: --python-version 3.10 --target $$site \
		--require-hashes --requirement requirements/detectron2.txt && \
	rm -rf $$site/tools

quickstart: env ## train, evaluate and draw a small Mask R-CNN on generated shapes (15 minutes, 2 cores)
	$(PY) tools/train_net.py --config-file configs/quickstart.yaml
	$(PY) tools/draw_predictions.py --config-file configs/quickstart.yaml \
		MODEL.WEIGHTS output/quickstart/model_final.pth

# One test process per processor, with one thread each. An idle process takes tests from the end of another's
# queue, so that most files, and the fixtures their tests share, stay in one process.
PYTEST := $(PY) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test: env ## run the tests not marked slow
	$(PYTEST) -m "not slow"

test-slow: env ## run the tests marked slow: trainings, docs commands, the wheel, the deepest networks
	$(PYTEST) -m slow

robust: env ## kill, interrupt and starve training, feed it bad input, and print the results (11 minutes, 2 cores)
	cd tests && ../$(PY) -W ignore -m robust

gpu: env ## test and time everything on this machine's GPUs (10 minutes): output/gpu, docs/BENCHMARKS.md
	mkdir -p output/gpu
	cd tests && ../$(PY) -W ignore -m gpu --json ../output/gpu/checks.json --page ../docs/BENCHMARKS.md

parity: env ## measure the errors against the released code and timm: docs/PARITY.md
	cd tests && ../$(PY) -W ignore -m parity.report ../docs/PARITY.md

docs: env ## build the documentation site (Python 3.11 or later): output/site/index.html
	$(PY) -m pip install --no-deps --requirement requirements/docs.txt
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

zoo: env ## generate docs/MODEL_ZOO.md from the records
	$(PY) -m resnest_d2.model_zoo --page docs/MODEL_ZOO.md

lint: env ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

LOCK := uv pip compile --universal --no-emit-index-url --no-header --no-annotate

lock: ## resolve requirements/env.in and docs.in into env.txt and docs.txt (needs uv)
	$(LOCK) --python-version 3.10 requirements/env.in --output-file requirements/env.txt
	$(LOCK) --python-version 3.11 --constraint requirements/env.txt requirements/docs.in \
		--output-file requirements/docs.txt

clean: ## remove everything the targets above create
	rm -rf $(VENV) output build dist *.egg-info
