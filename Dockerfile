# syntax=docker/dockerfile:1
# torch's wheels bring the CUDA libraries, so the base needs none; the host brings the driver.
FROM python:3.12-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

RUN useradd --create-home --uid 1000 worker \
    && mkdir -p /app /models \
    && chown worker:worker /app /models
WORKDIR /app

COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt

COPY --chown=worker:worker handler.py ./
COPY --chown=worker:worker embedder/ ./embedder/
COPY --chown=worker:worker qdrant_sink/ ./qdrant_sink/
COPY --chown=worker:worker service/ ./service/
COPY --chown=worker:worker corpus/ ./corpus/
COPY --chown=worker:worker precision/ ./precision/

USER worker

# A hub name bakes its weights into the image, at the revision that the worker pins; empty leaves them to
# the platform's cache or the first start.
ARG BAKE_MODEL=""
RUN if [ -n "$BAKE_MODEL" ]; then \
        python -c "import sys; from embedder.checkpoint import locate; locate(sys.argv[1])" "$BAKE_MODEL"; \
    fi

CMD ["python", "handler.py"]
