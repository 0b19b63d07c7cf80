"""Long documents in chunks: the resulting points, and the removal of an earlier version."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.cases.shared import NOTES, contents, count, search
from tests.contract.steps import Fault, Job, Scenario

LONG: Final = " ".join(f"Sentence number {n} speaks of topic {n % 7}, at some length." for n in range(20))
CHUNK: Final = {"maxTokens": 48, "overlap": 8}
OF_MANUAL: Final = {"must": [{"key": "doc_id", "match": {"value": "manual"}}]}


def _documents(
    name: str, *texts: str, vectors: list[str] | None = None, fault: Fault | None = None, **qdrant: Any
) -> Job:
    target = {"collection": NOTES, "chunk": CHUNK, **qdrant}
    more = {} if vectors is None else {"vectors": vectors}
    raw = {"texts": list(texts), "isPassage": True, "includeText": False, "qdrant": target, **more}
    return Job(name, raw, fault=fault)


def _delete(name: str, *documents: int | str, **fields: Any) -> Job:
    return Job(name, {"operation": "delete", "collection": NOTES, "docIds": list(documents), **fields})


SCENARIOS: Final = (
    Scenario(
        "whole documents",
        [
            _documents("first-version", LONG, "short", ids=["manual", 7]),
            _documents("version-beside-a-later-one", LONG[:300], ids=["manual"], fault="another writer"),
            count("count-of-the-later-version", filter=OF_MANUAL),
            _documents("version-after-the-later-one", LONG[:300], ids=["manual"]),
            _delete("delete-in-another-scope", "manual", idScope="elsewhere"),
            _delete("delete-documents", "manual", 7, "unknown"),
            count("count-after-the-deletion"),
        ],
    ),
    Scenario(
        "chunks",
        [
            _documents("two-documents", LONG, "short", ids=["manual", 7], payloads=[{"lang": "en"}, {"lang": "de"}]),
            count("count-of-chunks"),
            contents("chunks-as-stored"),
            _documents("same-document-again", LONG, ids=["manual"], payloads=[{"lang": "en"}]),
            count("count-after-the-same-document"),
            _documents("shorter-version", LONG[:300], ids=["manual"]),
            count("count-of-the-shorter-version", filter=OF_MANUAL),
            count("count-after-the-shorter-version"),
            search(
                "groups-of-documents",
                "topic 3",
                groupBy="doc_id",
                groupSize=2,
                limit=2,
                withPayload=["doc_id", "chunk"],
            ),
            search("explained-chunks", "topic 3", using=["dense"], explain=True, limit=2),
        ],
        engines=("stub", "mini"),
    ),
    Scenario(
        "forms of chunks",
        [
            _documents("no-ids", LONG, "short"),
            _documents("uuid", LONG[:400], ids=["6ba7b810-9dad-11d1-80b4-00c04fd430c8"]),
            _documents("integer-beyond-63-bits", LONG[:400], ids=[2**64 - 1]),
            _documents("scope", LONG[:400], ids=["manual"], idScope="lasting"),
            _documents("no-overlap", LONG[:400], ids=["tight"], chunk={"maxTokens": 32, "overlap": 0}),
            _documents("default-overlap", LONG[:400], ids=["eighth"], chunk={"maxTokens": 32}),
            _documents("default-size", LONG, ids=["whole"], chunk={}),
            _documents("largest-chunk", LONG, ids=["largest"], chunk={"maxTokens": 512, "overlap": 256}),
            _documents("blank-document", "", " ", ids=["none", "blank"]),
            _documents("text-key-of-chunks", LONG[:200], ids=["elsewhere"], textKey="body"),
            contents("all-forms-as-stored"),
            Job(
                "chunks-with-text-in-the-answer",
                {
                    "texts": [LONG[:300]],
                    "isPassage": True,
                    "maxLength": 64,
                    "qdrant": {"collection": NOTES, "chunk": CHUNK},
                },
            ),
        ],
    ),
    Scenario(
        "conflicts of documents",
        [
            _documents("insert-only-chunks", LONG, ids=["manual"], mode="insertOnly"),
            _documents("insert-only-chunks-again", LONG[:300], "new", ids=["manual", "new"], mode="insertOnly"),
            count("count-after-insert-only-chunks"),
            _documents("same-document-twice", LONG[:300], LONG[:300], ids=["a", "a"]),
            _documents("two-documents-of-one-id", LONG[:300], LONG[:200], "other", ids=["b", "b", "c"]),
            _documents("a-chunk-that-fails", "A zebra runs. " * 12, ids=["zebra"], vectors=["dense"]),
            _documents("a-payload-that-is-refused", LONG[:300], "fine", ids=["d", "e"], payloads=[{"n": 2**80}, {}]),
            count("count-after-conflicts"),
        ],
    ),
)
