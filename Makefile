# make setup   a virtual environment with the pinned dependencies
# make demo    the main job on the bundled corpus: no network, no server, no GPU
# make test    the tests (make test-slow: those that take longer);  make check   lint, format, types and imports
# make audit   known vulnerabilities of the pinned packages; needs the public package index
# make test-server   the tests of the store, against the server of QDRANT_URL
# make bench   this engine beside the original design and m3serve: docs/benchmarks.md, 25 minutes on two cores;
#              ARGS="--quick" takes 2 minutes and a small model, ARGS="--help" lists the options
# make bench ARGS="--device cuda:0"   on a GPU: engine, pool and handler beside the card's ceilings:
#              docs/benchmarks-gpu.md, under 10 minutes; ARGS="--device cuda:0 --help" lists the options
# make quality   nDCG and recall on the bundled questions, beside BM25: docs/retrieval.md, half a minute
# make bench-sink   building requests, and ingest beside the model alone: docs/benchmarks-sink.md, 5 minutes
# make bench-serving   cold starts, queries over HTTP beside a bulk job, bursts: docs/benchmarks-serving.md, 4 minutes
# make bench-answers   what the service adds to the model, beside an older revision: docs/benchmarks-answers.md, 5 minutes
# make bench-search   searches in Qdrant Edge, up to 100 000 points: docs/benchmarks-search.md, 5 minutes

VENV ?= .venv
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for python in python3 python3.12 python3.11; do \
	$$python -c "$(FITS)" 2>/dev/null && echo $$python && break; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
BENCH_DIR ?= build/bench

.PHONY: setup demo test test-slow test-server server-named check quality audit bench bench-answers bench-sink bench-search bench-serving format clean

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed and was not found; set PYTHON=..."; exit 1; }
	@$(PYTHON) -c "$(FITS)" || { echo "$(PYTHON) is not Python 3.11 or 3.12; set PYTHON=..."; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON) and the pinned dependencies: a few minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(READY)
	@MODEL_ID=$${MODEL_ID:-mini} GPU_DEVICE=$${GPU_DEVICE:-cpu} QDRANT_PATH=$${QDRANT_PATH:-build/demo} \
		$(BIN)/python -m service demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-server: server-named $(READY)
	$(BIN)/python -m pytest -m server tests/sink $(ARGS)

server-named:
	@test -n "$$QDRANT_URL" || { echo "QDRANT_URL is not set: these tests need a Qdrant server. With Docker:"; \
		echo "  docker compose up --detach --wait qdrant && make test-server QDRANT_URL=http://127.0.0.1:6333"; exit 1; }

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

quality: $(READY)
	@$(BIN)/python -m benchmarks.quality $(ARGS)

# In an environment of its own. --strict: a package that the index does not know is a failure, not a pass.
audit:
	@$(PYTHON) -m venv build/audit
	@build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements.txt

bench: $(BENCH_READY)
	@$(BIN)/python -m benchmarks --out $(BENCH_DIR) $(ARGS)

bench-sink: $(BENCH_READY)
	@$(BIN)/python -m benchmarks.sink --out $(BENCH_DIR)/sink $(ARGS)

bench-search: $(BENCH_READY)
	@$(BIN)/python -m benchmarks.search --out $(BENCH_DIR)/search $(ARGS)

bench-answers: $(BENCH_READY)
	@$(BIN)/python -m benchmarks.answers --out $(BENCH_DIR)/answers $(ARGS)

bench-serving: $(BENCH_READY)
	@$(BIN)/python -m benchmarks.serving --out $(BENCH_DIR)/serving $(ARGS)

$(BENCH_READY): $(READY) requirements-bench.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis
