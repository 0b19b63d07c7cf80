# syntax=docker/dockerfile:1
#
#   docker build -t bge-m3-qdrant .                                     weights from the platform's cache or the hub
#   docker build --build-arg BAKE_MODEL=BAAI/bge-m3 -t bge-m3-qdrant .  weights inside
#
# A plain Python image: torch's wheels bring the CUDA libraries (13.0), so a CUDA image would only add a second copy of
# them; the host brings the driver (580 or later). For an older driver, TORCH_INDEX names an extra index with a build for
# an older CUDA, which pip prefers there because its version has a suffix (2.13.0+cu126):
#   docker build --build-arg TORCH_INDEX=URL -t bge-m3-qdrant .
FROM python:3.12.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HF_HOME=/models \
    XDG_CACHE_HOME=/models/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A C compiler for Triton, which compiles the launchers of the GPU's kernels on the first start.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 worker \
    && install --directory --owner=worker --group=worker /app /models
WORKDIR /app

# torch is most of the image and changes least: a layer of its own, which other pins do not renew. The next layer installs
# again what torch needs beside CUDA, from files whose hashes are pinned.
ARG TORCH_INDEX=""
COPY requirements-torch.txt ./
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r requirements-torch.txt
COPY requirements.txt ./
RUN pip install --require-hashes --no-deps --force-reinstall -r requirements.txt && pip check

COPY handler.py ./
COPY clients/python/src/bge_m3_qdrant_client/ ./bge_m3_qdrant_client/
COPY corpus/ ./corpus/
COPY precision/ ./precision/
COPY embedder/ ./embedder/
COPY qdrant_sink/ ./qdrant_sink/
COPY service/ ./service/

# By number, so that a cluster can tell that it is not root.
USER 1000:1000

# A hub name, and its commit if it is not the default model; empty leaves the weights to the platform's cache or the
# first start.
ARG BAKE_MODEL=""
ARG BAKE_REVISION=""
RUN if [ -n "$BAKE_MODEL" ]; then python -m service prefetch ${BAKE_REVISION:+--revision "$BAKE_REVISION"} -- "$BAKE_MODEL"; fi
ENV MODEL_ID=${BAKE_MODEL:-BAAI/bge-m3} \
    MODEL_REVISION=${BAKE_REVISION} \
    HF_HUB_OFFLINE=${BAKE_MODEL:+1}

# Asks the HTTP server (PORT); the queue worker reports to the platform itself.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-m", "service", "healthcheck"]

# The exec form: Python is process 1, gets SIGTERM itself, and finishes its jobs.
CMD ["python", "handler.py"]
