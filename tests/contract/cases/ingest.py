"""Ingestion of texts: every option of the `qdrant` block except chunks and collections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tests.contract.cases.shared import NOTES, TEXTS, contents, count, search
from tests.contract.steps import Job, Scenario

UUID: Final = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
DEEP: Final[dict[str, Any]] = {}
_level = DEEP
for _ in range(30):
    _level["a"] = {}
    _level = _level["a"]


def _ingest(name: str, *texts: str, settings: dict[str, str] | None = None, **qdrant: Any) -> Job:
    target = {"collection": NOTES, **qdrant}
    return Job(name, {"texts": list(texts), "isPassage": True, "qdrant": target}, settings=settings or {})


def _request(name: str, texts: Sequence[str], qdrant: dict[str, Any], **fields: Any) -> Job:
    return Job(name, {"texts": texts, "isPassage": True, "qdrant": {"collection": NOTES, **qdrant}, **fields})


SCENARIOS: Final = (
    Scenario(
        "ids",
        [
            _ingest(
                "all-forms-of-ids",
                *TEXTS[:6],
                ids=[1, 2**64 - 1, UUID, f"urn:uuid:{UUID[:-1]}9", "1", "näme"],
                payloads=[{"n": n} for n in range(6)],
            ),
            count("count-of-all-ids"),
            contents("contents-by-ids"),
            _ingest("same-points-again", *TEXTS[:6], ids=[1, 2**64 - 1, UUID, f"urn:uuid:{UUID[:-1]}9", "1", "näme"]),
            count("count-after-the-same-again"),
            contents("contents-without-payloads"),
            _ingest("no-ids", *TEXTS[6:9]),
            _ingest("no-ids-again", *TEXTS[6:9]),
            count("count-with-derived-ids"),
            _ingest("id-scope", "scoped", ids=["a"], idScope="lasting"),
            _ingest("id-scope-without-ids", "scoped", idScope="lasting"),
            _ingest("same-id-and-payload-merge", "same", "same", ids=[50, 50]),
            _ingest(
                "same-id-other-payload",
                "same",
                "same",
                "same",
                ids=[51, 51, 51],
                payloads=[{"a": 1}, {"a": 2}, {"a": 1}],
            ),
            _ingest("same-text-no-ids-other-payload", "twice", "twice", payloads=[{"a": 1}, {"b": 1}]),
            count("count-after-merges"),
            Job("delete-a-string-id", {"operation": "delete", "collection": NOTES, "ids": ["1", "näme", "absent"]}),
            Job("delete-a-scoped-id", {"operation": "delete", "collection": NOTES, "ids": ["a"], "idScope": "lasting"}),
            Job("delete-integers-and-uuids", {"operation": "delete", "collection": NOTES, "ids": [1, UUID, 999]}),
            Job("delete-again", {"operation": "delete", "collection": NOTES, "ids": [1]}),
            count("count-after-deletions"),
        ],
        engines=("stub", "mini"),
    ),
    Scenario(
        "answers",
        [
            _request("with-text", TEXTS[:1], {"ids": [1]}),
            _request("without-text", TEXTS[:1], {"ids": [2]}, includeText=False),
            _request("with-vectors", TEXTS[:1], {"ids": [3]}, returnVectors=True),
            _request("with-base64", TEXTS[:1], {"ids": [4]}, returnVectors=True, encoding="base64", dtype="float16"),
            _request("with-timings", TEXTS[:1], {"ids": [5]}, timings=True),
            _request("cut", [TEXTS[0] * 20], {"ids": [6]}, maxLength=32),
            _request("as-query", [TEXTS[0] * 60], {"ids": [7]}, isPassage=False),
            _request("batches-of-one", TEXTS[:3], {"ids": [8, 9, 10]}, batchSize=1),
            _request("dense-alone", TEXTS[:1], {"ids": [11]}, vectors=["dense"]),
            _request("sparse-and-colbert", TEXTS[:1], {"ids": [12]}, vectors=["colbert", "sparse"], returnVectors=True),
            contents(
                "stored-vectors", withVectors=True, withPayload=False, filter={"must": [{"has_id": [1, 5, 11, 12]}]}
            ),
            Job("default-collection", {"texts": ["a"], "qdrant": {}}, settings={"QDRANT_COLLECTION": NOTES}),
            Job(
                "answer-of-texts-too-large",
                {"texts": ["word " * 400], "isPassage": True, "qdrant": {"collection": NOTES}},
                settings={"MAX_RESPONSE_MB": "0.002"},
            ),
            Job(
                "answer-of-vectors-too-large",
                {"texts": ["word " * 40], "returnVectors": True, "qdrant": {"collection": NOTES}},
                settings={"MAX_RESPONSE_MB": "0.004"},
            ),
            _ingest("more-tokens-than-the-queue", *TEXTS, settings={"QUEUE_TOKENS": "30"}),
            count("count-after-refusals"),
        ],
    ),
    Scenario(
        "rejected points",
        [
            _ingest("integer-of-128-bits", "a", "b", ids=[1, 2], payloads=[{"n": 2**100}, {}]),
            _ingest("payload-too-deep", "a", "b", ids=[3, 4], payloads=[DEEP, {}]),
            _ingest("payload-surrogate", "a", "b", ids=[5, 6], payloads=[{"x": "\ud800"}, {"\udfff": 1}]),
            _ingest("a-zebra-is-not-stored", "fine", "a zebra", ids=[8, 9]),
            _request(
                "a-zebra-with-vectors", ["a zebra", "fine"], {"ids": [10, 11]}, returnVectors=True, vectors=["dense"]
            ),
            _request("nothing-to-be-found-by", ["", "some words"], {"ids": [12, 13]}, vectors=["sparse"]),
            _ingest(
                "invalid-ids",
                *"abcdefghijk",
                ids=[20, -1, 2**64, 1.5, 1.0, True, "", "\ud800", [1], None, {}],
            ),
            _ingest(
                "invalid-payloads",
                *"abcdefghi",
                ids=["a", "b", "c", "d", "e", "f", "g", "h", 30],
                payloads=[{}, [], "x", 5, {"text": "mine"}, {"text": "f"}, {"id": 1}, {"id": "h"}, None],
            ),
            _ingest(
                "payload-keys-of-chunks",
                "one text",
                "two texts",
                "three texts",
                ids=["a", "b", "c"],
                payloads=[{"doc_id": 1}, {"chunk": 0}, {"doc_id": "c", "text": "three texts"}],
                chunk={},
            ),
            _request(
                "invalid-rows-with-vectors",
                ["a", "b", "c"],
                {"ids": [-1, 40, 41], "payloads": [{}, 5, {}]},
                returnVectors=True,
                vectors=["sparse"],
            ),
            contents("contents-beside-rejected-rows"),
            _ingest("all-rejected", "a", ids=[14], payloads=[{"n": -(2**70)}]),
            count("count-of-what-was-taken"),
        ],
        engines=("stub",),
    ),
    Scenario(
        "payloads",
        [
            _ingest("text-key", "kept elsewhere", ids=[1], textKey="body", payloads=[{"text": "mine", "id": 5}]),
            _ingest(
                "every-kind-of-value",
                "values",
                ids=[2],
                payloads=[
                    {
                        "s": 'ä\n"',
                        "i": -(2**63),
                        "f": 0.1,
                        "b": False,
                        "n": None,
                        "l": [1, "a", [], {}],
                        "o": {"k": {"k": 1}},
                        "": 1,
                        "a.b": 2,
                    }
                ],
            ),
            contents("payloads-as-stored"),
            _ingest("payload-is-replaced", "values", ids=[2], payloads=[{"only": "this"}]),
            contents("payloads-after-the-replacement"),
        ],
    ),
    Scenario(
        "insert only",
        [
            _ingest("insert-into-nothing", *TEXTS[:3], ids=[1, 2, 3], mode="insertOnly"),
            _ingest(
                "insert-what-is-missing",
                *TEXTS[:4],
                ids=[1, 2, 3, 4],
                payloads=[{"new": n} for n in range(4)],
                mode="insertOnly",
            ),
            _ingest("insert-nothing", *TEXTS[:2], ids=[1, 2], mode="insertOnly"),
            _ingest("insert-twice-the-same", "x", "x", ids=[9, 9], mode="insertOnly"),
            _ingest("upsert-replaces", TEXTS[0], ids=[1], payloads=[{"newer": True}], mode="upsert"),
            contents("contents-after-insert-only"),
            _ingest("compare-kept", TEXTS[0], "y", TEXTS[2], ids=[1, 2, 3], mode="insertOnly", compareKept=True),
            _ingest("compare-without-keeping", TEXTS[0], ids=[1], compareKept=True),
            Job(
                "last-report",
                {"texts": ["d", "e", "e"], "qdrant": {"collection": NOTES, "ids": [4, 20, 20], "mode": "insertOnly"}},
                reports=True,
            ),
        ],
        engines=("stub", "mini"),
    ),
    Scenario(
        "pooling",
        [
            _ingest("too-many-rows", "word " * 40, "few rows", ids=[1, 2]),
            _ingest("too-many-rows-are-pooled", "word " * 40, "few rows", ids=[1, 2], colbertPooling="mean"),
            _request("too-many-rows-without-colbert", ["word " * 40], {"ids": [3]}, vectors=["dense"]),
            _ingest("rows-of-chunks", "Some words of a text. " * 30, ids=[4], chunk={"maxTokens": 32, "overlap": 0}),
            search("pooled-rows", "few words", rerank="colbert", limit=2),
        ],
        multivector_values=21 * 64,
    ),
)
