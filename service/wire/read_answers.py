"""Rendering of collections, loads and stored points as answers."""

from __future__ import annotations

from typing import Any, cast

from qdrant_sink import Vectors
from service.operations import CollectionsResult, DescribedCollection, LoadStep, PointsResult, ReadPoint
from service.wire.answer_types import (
    CollectionAnswer,
    CollectionsAnswer,
    LoadAnswer,
    ModelAnswer,
    ReadPointAnswer,
    ReadPointsAnswer,
    StoredVectorsAnswer,
    TextAnswer,
    VectorAnswer,
)
from service.wire.answers import add_vectors, id_answer, recognised_answer
from service.wire.positions import position_answer
from service.wire.read_requests import ReadPointsRequest


def collections_answer(result: CollectionsResult) -> CollectionsAnswer:
    """The answer that lists collections."""
    answer: CollectionsAnswer = {
        "collections": list(result.names),
        "aliases": dict(result.aliases),
        "default": result.default,
    }
    if result.descriptions:
        answer["descriptions"] = dict(result.descriptions)
    return answer


def collection_answer(result: DescribedCollection, model: str) -> CollectionAnswer:
    """The answer that describes a collection.

    Args:
        result: the result of the operation.
        model: name of the worker's model.
    """
    state, description = result.state, result.state.description
    vectors: list[VectorAnswer] = [
        {
            "name": name,
            "kind": vector.kind,
            "size": vector.size,
            "distance": vector.distance,
            "datatype": vector.datatype,
            "quantization": vector.quantization,
            "modifier": vector.modifier,
        }
        for name, vector in sorted(description.vectors.items())
    ]
    answer: CollectionAnswer = {
        "name": result.name,
        "aliases": list(result.aliases),
        "status": state.status,
        "points": state.points,
        "indexedVectors": state.indexed_vectors,
        "vectors": vectors,
        "payloadIndexes": [
            {"key": key, "type": index.type, "isTenant": index.tenant}
            for key, index in sorted(description.payload_indexes.items())
        ],
        "layout": {
            "name": result.form.layout,
            "source": "collection" if result.form.source == "collection" else "config",
        },
        "textKey": result.form.text_key,
        "model": _model(result, model),
    }
    if result.description is not None:
        answer["description"] = result.description
    if result.taken:
        answer["recognised"] = recognised_answer(result.taken)
    if result.ambiguous:
        answer["choices"] = {setting: list(names) for setting, names in result.ambiguous.items()}
    return answer


def _model(result: DescribedCollection, worker_model: str) -> ModelAnswer:
    model = result.state.model
    if model is None:
        return {"name": worker_model, "source": "worker"}
    return {"name": model.name, "revision": model.revision, "source": "collection"}


def load_answer(step: LoadStep) -> LoadAnswer:
    """The answer to a step of a load."""
    outcome = cast("Any", step.outcome)
    return {"outcome": outcome, "aliases": list(step.aliases), "messages": list(step.messages)}


def points_answer(request: ReadPointsRequest, result: PointsResult) -> ReadPointsAnswer:
    """The answer with stored points: `missing` for ids, `next` for a page."""
    points = [_point(request, point) for point in result.points]
    if result.missing is not None:
        return {"points": points, "missing": list(result.missing)}
    return {"points": points, "next": None if result.next is None else position_answer(result.next)}


def _point(request: ReadPointsRequest, point: ReadPoint) -> ReadPointAnswer:
    answer: ReadPointAnswer = {"id": id_answer(point.id)}
    if point.requested is not None:
        answer["requestedId"] = point.requested
    if point.payload is not None:
        answer["payload"] = dict(point.payload)
    if request.with_vectors:
        vectors: TextAnswer = {}
        add_vectors(vectors, point.vectors or Vectors(), request.encoding, request.dtype)
        answer["vectors"] = cast("StoredVectorsAnswer", vectors)
    return answer
