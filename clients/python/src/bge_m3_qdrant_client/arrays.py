"""Vectors of an answer as numpy arrays, out of base64 or out of lists of numbers."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import GetPydanticSchema
from pydantic_core import core_schema

_DTYPES: Final[dict[Any, np.dtype[Any]]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


def array_of(value: Any, dimensions: int, dtype: Any = np.float32) -> NDArray[Any]:
    """The array of `{"shape", "dtype", "data"}`, of a list of numbers, or of an array.

    An array out of base64 has the type of its data, float32 or float16, and cannot be written to.

    Args:
        value: the JSON value.
        dimensions: 1 for a vector, 2 for rows.
        dtype: the type of an array out of a list.

    Raises:
        ValueError: the value is none of these, or its data does not fit its shape.
    """
    if not isinstance(value, (dict, list, np.ndarray)):
        raise ValueError("must be a list of numbers or an array in base64")  # noqa: TRY004 - pydantic collects these
    try:
        array = _decoded(value) if isinstance(value, dict) else np.asarray(value, dtype=dtype)
    except (TypeError, OverflowError):
        raise ValueError("must have numbers only") from None
    if array.ndim != dimensions and array.size:
        raise ValueError(f"must have {dimensions} dimensions, got {array.ndim}")
    return array


def _decoded(block: dict[str, Any]) -> NDArray[Any]:
    shape, name, data = block.get("shape"), block.get("dtype"), block.get("data")
    if not isinstance(name, str) or name not in _DTYPES or not isinstance(shape, list) or not isinstance(data, str):
        raise ValueError("must have shape, dtype and data, where dtype is float32 or float16")
    dtype = _DTYPES[name]
    decoded = base64.b64decode(data)
    if min(shape, default=0) < 0 or len(decoded) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"has {len(decoded)} bytes of {name}, which do not fit the shape {shape}")
    array: NDArray[Any] = np.frombuffer(decoded, dtype).reshape(shape)
    return array


def _schema(dimensions: int, dtype: Any = np.float32) -> GetPydanticSchema:
    def parsed(value: Any) -> NDArray[Any]:
        return array_of(value, dimensions, dtype)

    as_list: Callable[[NDArray[Any]], Any] = np.ndarray.tolist
    schema = core_schema.no_info_plain_validator_function(
        parsed, serialization=core_schema.plain_serializer_function_ser_schema(as_list, when_used="json")
    )
    return GetPydanticSchema(lambda _type, _handler: schema)


Numbers = Annotated[NDArray[Any], _schema(1)]
"""A vector [dimensions], float32 or float16."""

Rows = Annotated[NDArray[Any], _schema(2)]
"""ColBERT rows [rows, dimensions], float32 or float16."""

Indices = Annotated[NDArray[np.uint32], _schema(1, np.uint32)]
"""Token ids of a sparse vector [tokens]."""
