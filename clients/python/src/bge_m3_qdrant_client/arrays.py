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


def array_of(value: Any, dtype: Any = np.float32) -> NDArray[Any]:
    """The array of `{"shape", "dtype", "data"}`, of a list of numbers, or of an array.

    An array out of base64 has the type of its data, float32 or float16, and cannot be written to.

    Args:
        value: the JSON value.
        dtype: the type of an array out of a list.

    Raises:
        ValueError: the value is none of these, or its data does not fit its shape.
    """
    if isinstance(value, dict):
        return _decoded(value)
    if isinstance(value, (list, np.ndarray)):
        return np.asarray(value, dtype=dtype)
    raise ValueError("must be a list of numbers or an array in base64")


def _decoded(block: dict[str, Any]) -> NDArray[Any]:
    shape, name, data = block.get("shape"), block.get("dtype"), block.get("data")
    if name not in _DTYPES or not isinstance(shape, list) or not isinstance(data, str):
        raise ValueError("must have shape, dtype and data, where dtype is float32 or float16")
    dtype = _DTYPES[name]
    decoded = base64.b64decode(data)
    if len(decoded) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"has {len(decoded)} bytes of {name}, which do not fit the shape {shape}")
    array: NDArray[Any] = np.frombuffer(decoded, dtype).reshape(shape)
    return array


def _schema(dtype: Any) -> GetPydanticSchema:
    def parsed(value: Any) -> NDArray[Any]:
        return array_of(value, dtype)

    as_list: Callable[[NDArray[Any]], Any] = np.ndarray.tolist
    schema = core_schema.no_info_plain_validator_function(
        parsed, serialization=core_schema.plain_serializer_function_ser_schema(as_list, when_used="json")
    )
    return GetPydanticSchema(lambda _type, _handler: schema)


Numbers = Annotated[NDArray[Any], _schema(np.float32)]
"""A vector [dimensions], float32 or float16."""

Rows = Annotated[NDArray[Any], _schema(np.float32)]
"""ColBERT rows [rows, dimensions], float32 or float16."""

Indices = Annotated[NDArray[np.uint32], _schema(np.uint32)]
"""Token ids of a sparse vector [tokens]."""
