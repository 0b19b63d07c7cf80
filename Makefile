VENV ?= .venv
BENCH_DIR ?= build/bench

# Settings of `make demo` and `make serve`; each may stand on the command line: make serve PORT=9000
MODEL_ID ?= mini
GPU_DEVICE ?= cpu
QDRANT_PATH ?= build/demo
PORT ?= 8000

FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c "$(FITS)" 2>/dev/null && echo $$python && break; done)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Only files whose hash is in the requirements, and nothing that is not in them.
HASHED := --require-hashes --no-deps
# The environment in layers: what the service needs, and on top what the tests need, or what `make bench` needs.
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.dev-ready
BENCH_READY := $(VENV)/.bench-ready

DEMO_SETTINGS := MODEL_ID="$(MODEL_ID)" GPU_DEVICE="$(GPU_DEVICE)" QDRANT_PATH="$(QDRANT_PATH)"
DEMO_READY := $(QDRANT_PATH)/.demo-ready
DEMO := $(DEMO_SETTINGS) $(BIN)/bge-m3-qdrant demo
SERVE := $(DEMO_SETTINGS) QDRANT_COLLECTION=demo PORT="$(PORT)" $(BIN)/bge-m3-qdrant serve

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-slow test-hostile test-server server-named check format quality requirements audit \
	bench bench-answers bench-bulk bench-inference bench-sink bench-search bench-serving bench-shards clean

help: ## this list
	@echo "make TARGET, where TARGET is one of:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## set up the virtual environment (once; `make demo` and the others do it by themselves)
	@echo
	@echo "$(VENV) is ready. Next:"
	@echo "  make demo    ingest the bundled corpus and ask it questions (ten seconds, no network)"
	@echo "  make serve   the same collection over HTTP, with a search page"
	@echo "  make         every other target"
	@echo "  $(BIN)/bge-m3-qdrant --help   everything else"

$(READY): requirements.txt requirements-torch.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found; set PYTHON=..."; exit 1; }
	@$(PYTHON) -c "$(FITS)" || { echo "$(PYTHON) is not Python 3.11 or 3.12; set PYTHON=..."; exit 1; }
	@echo "Step 1 of 3: create $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Step 2 of 3: install the packages that are pinned by hash, and the command bge-m3-qdrant"
	@$(PIP) install $(HASHED) --requirement requirements.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable clients/python --editable .
	@echo "Step 3 of 3: install torch. This takes longest, and happens once: on Linux pip's default index has the CUDA"
	@echo "build, 2.7 GB to download; TORCH_INDEX=... names an extra index with a smaller one, such as torch's own for CPUs."
	@$(PIP) install $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") --requirement requirements-torch.txt
	@$(PIP) check
	@touch $@

$(DEV_READY): $(READY) requirements-dev.txt
	@echo "Install what tests and checks need, on top of $(VENV), once"
	@$(PIP) install $(HASHED) --requirement requirements-dev.txt
	@$(PIP) check
	@touch $@

$(BENCH_READY): $(READY) requirements-bench.txt
	@echo "Install what the benchmarks need, on top of $(VENV), once"
	@$(PIP) install $(HASHED) --requirement requirements-bench.txt
	@$(PIP) check
	@touch $@

demo: $(READY) ## embed, store and search the bundled corpus: no network, no server, no GPU
	@$(DEMO)
	@mkdir -p "$(QDRANT_PATH)" && touch "$(DEMO_READY)"

serve: $(READY) ## serve the demo's collection over HTTP, with a search page (PORT=8000)
	@test -e "$(DEMO_READY)" || $(MAKE) --no-print-directory demo
	@echo
	@echo "Once the log below says 'serving':"
	@echo "  search page  http://127.0.0.1:$(PORT)/"
	@echo "  API          http://127.0.0.1:$(PORT)/openapi.json"
	@echo "  one query    curl http://127.0.0.1:$(PORT)/search -H 'Content-Type: application/json' \\"
	@echo "                 -d '{\"queries\": [\"SQL library that keeps a database in a single file\"], \"rerank\": \"colbert\", \"limit\": 3}'"
	@echo "The port is open to your network without a key; API_KEY=... asks for one. Ctrl-C stops the server."
	@echo
	@$(SERVE)

test: $(DEV_READY) ## run the tests
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-slow: $(DEV_READY) ## run the tests that take longer, and those of hypothesis with all examples
	$(BIN)/python -m pytest -m "slow or hypothesis"

test-hostile: $(DEV_READY) ## hostile input, also how long others wait for it: on an idle machine, 10 minutes
	$(BIN)/python -m pytest -m "slow or timed" tests/hostile $(ARGS)

test-server: server-named $(DEV_READY) ## test against the Qdrant server of QDRANT_URL
	$(BIN)/python -m pytest -m server tests/sink tests/service tests/test_examples.py $(ARGS)

server-named:
	@test -n "$$QDRANT_URL" || { echo "QDRANT_URL is not set: these tests need a Qdrant server. With Docker:"; \
		echo "  docker compose up --detach --wait qdrant && make test-server QDRANT_URL=http://127.0.0.1:6333"; exit 1; }

check: $(DEV_READY) ## lint, format, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=clients/python/src $(BIN)/lint-imports

format: $(DEV_READY) ## fix lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Renews the hashes of every file of the pinned versions, for all platforms. A pin is added or changed as NAME==VERSION.
requirements: ## write the hashes of the pinned packages anew (asks the package index)
	@$(PYTHON) -m venv build/requirements
	@build/requirements/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@for file in requirements.txt requirements-dev.txt requirements-bench.txt; do \
		sed -n 's/ *\\$$//; /^[A-Za-z]/p' $$file > build/requirements/pins.txt && \
		build/requirements/bin/uv pip compile --quiet --no-deps --generate-hashes --universal --python-version 3.11 \
			--no-header --no-annotate build/requirements/pins.txt --output-file build/requirements/$$file && \
		{ grep '^[#-]' $$file; cat build/requirements/$$file; } > build/requirements/new.txt && \
		mv build/requirements/new.txt $$file || exit 1; \
	done

# In an environment of its own. --strict: a package that the index does not know is a failure, not a pass.
audit: ## compare the pinned packages with the public advisories (needs the public package index)
	@$(PYTHON) -m venv build/audit
	@build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements.txt
	build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements-torch.txt

quality: $(DEV_READY) ## nDCG and recall on the bundled questions, beside BM25: docs/retrieval.md, half a minute
	@$(BIN)/python -m benchmarks.quality $(ARGS)

bench: $(BENCH_READY) ## beside the original and m3serve: docs/benchmarks.md, 25 minutes (ARGS="--quick": 2; "--device cuda:0"; "--help")
	@$(BIN)/python -m benchmarks --out $(BENCH_DIR) $(ARGS)

bench-sink: $(BENCH_READY) ## building requests, and ingest beside the model alone: docs/benchmarks-sink.md, 5 minutes
	@$(BIN)/python -m benchmarks.sink --out $(BENCH_DIR)/sink $(ARGS)

bench-search: $(BENCH_READY) ## searches in Qdrant Edge, up to 100 000 points: docs/benchmarks-search.md, 5 minutes
	@$(BIN)/python -m benchmarks.search --out $(BENCH_DIR)/search $(ARGS)

bench-answers: $(BENCH_READY) ## what the service adds to the model, beside an older revision: docs/benchmarks-answers.md, 5 minutes
	@$(BIN)/python -m benchmarks.answers --out $(BENCH_DIR)/answers $(ARGS)

bench-serving: $(BENCH_READY) ## cold starts, queries beside a bulk job, bursts: docs/benchmarks-serving.md, 4 minutes
	@$(BIN)/python -m benchmarks.serving --out $(BENCH_DIR)/serving $(ARGS)

bench-inference: $(BENCH_READY) ## documents of a Qdrant server beside the model alone, 5 minutes (ARGS="--quick": seconds)
	@$(BIN)/python -m benchmarks.inference --out $(BENCH_DIR)/inference $(ARGS)

bench-bulk: $(BENCH_READY) ## a bulk load beside the model alone (ARGS="--rows 10000 100000": the peak memory of loads)
	@$(BIN)/python -m benchmarks.bulk $(ARGS)

bench-shards: $(BENCH_READY) ## four shards of a bulk load on this machine beside one process, 2 minutes (ARGS="--model /path --texts 1000")
	@$(BIN)/python -m benchmarks.shards $(ARGS)

clean: ## remove the virtual environment, build/ and all caches
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis
