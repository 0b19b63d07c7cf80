"""The fields of an ingest request that hold for all its texts, so that an error about one is the fault of no text."""

from __future__ import annotations

import re
from typing import Final

from pydantic.alias_generators import to_camel

from service.wire.requests import EmbedRequest, QdrantTarget

_OF_A_TEXT: Final = {"texts", "qdrant.ids", "qdrant.payloads"}

_SHARED: Final = (
    {
        *(to_camel(name) for name in EmbedRequest.model_fields),
        *(f"qdrant.{to_camel(name)}" for name in QdrantTarget.model_fields),
        "collection",
    }
    - {"qdrant"}
    - _OF_A_TEXT
)


def is_about_all_texts(message: str) -> bool:
    """Whether the message of an error begins with a field that holds for all texts of the request."""
    path = re.match(r"(?P<field>(?:qdrant\.)?\w+)(?:[.\[][^ :]*)?(?=:| must | is required| needs | cannot )", message)
    return path is not None and path["field"] in _SHARED
