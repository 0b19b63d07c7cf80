"""Disk and memory of collections on a Qdrant server of its own, by kind of vector, storage type and quantization.

The server is started on loopback with an empty folder for each case. Its collection has one vector (or only payloads),
so that the files of a segment show what each part costs. After the load and the optimization the server starts again,
and its memory is compared with that of an empty server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from qdrant_client import QdrantClient, models

import corpus
from benchmarks.collection_size_cases import CASES, Case

BLOCK_BYTES: Final = 512
"""Unit of `st_blocks`."""

START_TIMEOUT_S: Final = 60.0
GREEN_TIMEOUT_S: Final = 400.0
VOCABULARY: Final = 250_002
ZIPF_EXPONENT: Final = 1.1
RANDOM: Final = np.random.default_rng(0)
TOKENS: Final = RANDOM.permutation(VOCABULARY)
"""Ids of tokens by the rank of their frequency."""


class Server:
    """A server of its own on loopback, with its storage in a folder.

    Args:
        program: path of the server.
        folder: for its storage.
    """

    def __init__(self, program: Path, folder: Path) -> None:
        self._program, self._folder = program, folder
        self.storage = folder / "storage"
        self._http, self._grpc = _free_port(), _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """The address of its REST interface."""
        return f"http://127.0.0.1:{self._http}"

    def client(self) -> QdrantClient:
        """A client that sends points over gRPC."""
        return QdrantClient(
            url=self.url, grpc_port=self._grpc, prefer_grpc=True, timeout=300, check_compatibility=False
        )

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            TimeoutError: it does not answer.
        """
        environment = os.environ | {
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__HTTP_PORT": str(self._http),
            "QDRANT__SERVICE__GRPC_PORT": str(self._grpc),
            "QDRANT__STORAGE__STORAGE_PATH": str(self.storage),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(self._folder / "snapshots"),
            "QDRANT__TELEMETRY_DISABLED": "true",
            "QDRANT__LOG_LEVEL": "ERROR",
        }
        self._process = subprocess.Popen(
            [self._program], cwd=self._folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < limit:
            try:
                httpx.get(f"{self.url}/readyz", timeout=1).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.2)
            else:
                return
        raise TimeoutError(f"the server does not answer after {START_TIMEOUT_S:g} seconds")

    def stop(self) -> None:
        """End it, and wait for its end."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def memory(self) -> dict[str, int]:
        """Resident bytes: `anonymous`, and `file` of mapped files."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
        return {"anonymous": int(fields["RssAnon"]) * 1024, "file": int(fields["RssFile"]) * 1024}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def _peak_disk(folder: Path, result: dict[str, int]) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.3):
            result["peak"] = max(result.get("peak", 0), sum(allocated(folder).values()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def allocated(folder: Path) -> dict[str, int]:
    """Bytes on disk by part of a segment, such as `vector_index-v/graph.bin`; `wal` and the rest beside segments."""
    parts: dict[str, int] = defaultdict(int)
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            try:
                size = path.stat().st_blocks * BLOCK_BYTES
            except FileNotFoundError:
                continue
            inner = path.relative_to(folder).parts
            if "segments" in inner:
                rest = inner[inner.index("segments") + 2 :]
                part = "/".join((rest[0], rest[-1])) if len(rest) > 1 else (rest or ("segment",))[0]
            else:
                part = "wal" if "wal" in inner else "other"
            parts[part] += size
    return dict(parts)


def measure(case: Case, program: Path, folder: Path) -> dict[str, Any]:
    """Load the case into a server of its own, and measure.

    Returns:
        Bytes on disk by part, resident bytes beyond those of an empty server, and the greatest use of the disk.
    """
    server = Server(program, folder)
    try:
        empty = server.memory()
        client = server.client()
        peak: dict[str, int] = {}
        texts = 0
        started = time.perf_counter()
        with _peak_disk(server.storage, peak):
            _create(client, server.url, case)
            texts = _load(client, case)
            info = _wait(client)
        seconds = time.perf_counter() - started
        client.close()
        server.stop()
        disk = allocated(server.storage)
        server.start()
        client = server.client()
        _wait(client)
        time.sleep(2)
        full = server.memory()
        client.close()
    finally:
        server.stop()
    parts = {part: size for part, size in sorted(disk.items()) if size >= 4096 * 4}
    return {
        "case": case.name,
        "points": case.points,
        "indexed": info.indexed_vectors_count,
        "segments": info.segments_count,
        "payload_bytes": texts / case.points,
        "disk_bytes": parts,
        "disk_peak_bytes": peak.get("peak", 0),
        "memory_bytes": {kind: full[kind] - empty[kind] for kind in full},
        "seconds": round(seconds, 1),
    }


def _create(client: QdrantClient, url: str, case: Case) -> None:
    vectors: dict[str, models.VectorParams] = {}
    sparse = None
    if case.kind == "sparse":
        index = models.SparseIndexParams(datatype=models.Datatype(case.datatype), on_disk=case.on_disk)
        sparse = {"v": models.SparseVectorParams(index=index)}
    else:
        several = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        vectors["v"] = models.VectorParams(
            size=case.size,
            distance=models.Distance.COSINE,
            datatype=models.Datatype(case.datatype),
            on_disk=case.on_disk,
            hnsw_config=models.HnswConfigDiff(m=case.m, ef_construct=100),
            multivector_config=several if case.kind == "colbert" else None,
        )
    body = models.CreateCollection(
        vectors=vectors, sparse_vectors=sparse, shard_number=1, on_disk_payload=True
    ).model_dump(mode="json", exclude_none=True)
    if case.quantization is not None:
        body["vectors"]["v"]["quantization_config"] = case.quantization
    answer = httpx.put(f"{url}/collections/sizes", json=body, timeout=60)
    if answer.is_error:
        raise RuntimeError(answer.text)
    if case.index is not None:
        client.create_payload_index("sizes", "topic", field_schema=models.PayloadSchemaType(case.index))


def _load(client: QdrantClient, case: Case) -> int:
    """Store all points.

    Returns:
        Bytes of all payloads as JSON.
    """
    sent = 0
    batch = 16 if case.kind == "colbert" else 500
    made = random.Random(0)
    text = "\n".join(passage.text for passage in corpus.passages())
    for start in range(0, case.points, batch):
        count = min(batch, case.points - start)
        points = []
        vectors = _vectors(case, count)
        for offset in range(count):
            number = start + offset
            payload = None
            if case.kind == "payload":
                payload = {"text": _text(made, text, case.per_point), "topic": f"topic {number % 100}"}
                sent += len(json.dumps(payload, ensure_ascii=False).encode())
            points.append(
                models.PointStruct(
                    id=str(uuid.UUID(int=made.getrandbits(128))) if case.uuids else number,
                    vector={"v": vectors[offset]},
                    payload=payload,
                )
            )
        client.upsert("sizes", points, wait=True)
    return sent


def _vectors(case: Case, count: int) -> list[Any]:
    if case.kind in {"dense", "payload"}:
        if case.datatype == "uint8":
            return list(RANDOM.integers(0, 256, (count, case.size)).astype(np.float32).tolist())
        return list(RANDOM.standard_normal((count, case.size), np.float32).tolist())
    if case.kind == "colbert":
        shape = (count, case.per_point, case.size)
        if case.datatype == "uint8":
            return list(RANDOM.integers(0, 256, shape).astype(np.float32).tolist())
        return list(RANDOM.standard_normal(shape, np.float32).tolist())
    return [_sparse(case.per_point) for _ in range(count)]


def _sparse(weights: int) -> models.SparseVector:
    """Weights of different tokens, whose frequencies are those of words (Zipf)."""
    tokens: set[int] = set()
    while len(tokens) < weights:
        drawn = RANDOM.zipf(ZIPF_EXPONENT, weights * 4)
        for rank in drawn[drawn < VOCABULARY]:
            tokens.add(int(TOKENS[rank]))
            if len(tokens) == weights:
                break
    indices = sorted(tokens)
    return models.SparseVector(indices=indices, values=RANDOM.random(weights, np.float32).tolist())


def _text(made: random.Random, text: str, characters: int) -> str:
    """A part of the text that begins anywhere, and goes on at its beginning."""
    start = made.randrange(len(text))
    return (text[start:] + text)[:characters]


def _wait(client: QdrantClient) -> models.CollectionInfo:
    limit = time.monotonic() + GREEN_TIMEOUT_S
    calm = 0
    while time.monotonic() < limit:
        info = client.get_collection("sizes")
        calm = calm + 1 if info.status == models.CollectionStatus.GREEN else 0
        if calm >= 6:
            return info
        time.sleep(0.5)
    raise TimeoutError(f"the collection is not green after {GREEN_TIMEOUT_S:g} seconds")


def main() -> None:
    """Measure the cases that are named, or all, and write one line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", type=Path, required=True, help="the program of a Qdrant server")
    parser.add_argument("--out", type=Path, default=Path("build/bench/collection-sizes.jsonl"))
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names of cases; all by default")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    cases = {case.name: case for case in CASES}
    for case in [cases[name] for name in arguments.cases] or CASES:
        with tempfile.TemporaryDirectory(dir=arguments.out.parent) as folder:
            line = json.dumps(measure(case, arguments.server.resolve(), Path(folder)))
        print(line, flush=True)
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
