"""What the vectors of a file are, as the metadata of its schema says: model, kinds, types, chunks, and its part."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from embedder import Kind, Vocabulary
from qdrant_sink import ModelIdentity
from service.bulk.formats import VECTORS_KEY, WRITER_KEY

FORMAT_VERSION: Final = 1
"""Version of the columns and of the metadata."""


class DescriptionError(Exception):
    """The description of a file cannot be used. The message says why, without the file's name."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a part reaches into the input.

    Attributes:
        lines: lines that were read up to the end of the part, including those that are not documents.
        digest: digest of all these lines, in hexadecimal; empty before the first.
        failed: points that were rejected only when they were cut or embedded, up to here.
    """

    lines: int = 0
    digest: str = ""
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the vectors of a file are.

    Attributes:
        model: name of the model.
        revision: revision of the model; None if unknown.
        model_dtype: type of the matrix products that computed the vectors.
        vocabulary: digest of the tokenizer's file, which says what sparse indices mean.
        dropped_ids: ids of tokens that carry no sparse weight.
        kinds: kinds of vectors.
        dtype: type of the numbers of dense and ColBERT vectors.
        dense_size: numbers of a dense vector of the model.
        colbert_size: numbers of a ColBERT row of the model.
        max_length: tokens beyond which a text was truncated.
        chunk_tokens: maximum tokens of a chunk; 0 for no chunks.
        chunk_overlap: tokens that a chunk repeats of the previous one.
        colbert_pooling: `none` or `mean`.
    """

    model: str
    revision: str | None
    model_dtype: str
    vocabulary: str
    dropped_ids: Sequence[int]
    kinds: Sequence[Kind]
    dtype: str
    dense_size: int
    colbert_size: int
    max_length: int
    chunk_tokens: int = 0
    chunk_overlap: int = 0
    colbert_pooling: str = "none"

    @classmethod
    def of_model(cls, identity: ModelIdentity, vocabulary: Vocabulary, **options: Any) -> Description:
        """The description of vectors of a model.

        Args:
            identity: the model.
            vocabulary: what its token ids mean.
            options: the other attributes.
        """
        return cls(
            model=identity.name,
            revision=identity.revision,
            vocabulary=vocabulary.digest,
            dropped_ids=vocabulary.dropped_ids,
            **options,
        )

    @property
    def identity(self) -> ModelIdentity:
        """The model."""
        return ModelIdentity(self.model, self.revision)

    def difference(self, other: Description, *, names: Collection[str] = ()) -> str | None:
        """The first difference in words; None if both are equal.

        Args:
            other: another description.
            names: attributes that are compared; empty for all.
        """
        own, others = asdict(self), asdict(other)
        for name, value in own.items():
            if value != others[name] and (not names or name in names):
                return f"{name.replace('_', ' ')} {_shown(others[name])}, not {_shown(value)}"
        return None


@dataclass(frozen=True, slots=True)
class Part:
    """The description of one file of a folder.

    Attributes:
        description: what its vectors are.
        number: number of the part, from 0.
        end: how far it reaches into the input.
        is_last: whether the input ends with it.
        checksums: checksums of the columns of each row group.
    """

    description: Description
    number: int
    end: Position
    is_last: bool = False
    checksums: Sequence[Mapping[str, int]] = ()

    def metadata(self) -> dict[str, str]:
        """The part as metadata of a Parquet file."""
        fields = {"format": FORMAT_VERSION, **asdict(self.description), "part": self.number, "last": self.is_last}
        fields |= {"end": asdict(self.end), "row_groups": list(self.checksums)}
        return {VECTORS_KEY: json.dumps({**fields, "checksum": _checksum(fields)})}

    @classmethod
    def read(cls, metadata: Mapping[bytes, bytes] | None) -> Part | None:
        """Read the metadata of a Parquet file; None if it has no description.

        Raises:
            DescriptionError: the description is damaged, or of a later version.
        """
        metadata = metadata or {}
        if not {VECTORS_KEY.encode(), WRITER_KEY.encode()} & set(metadata):
            return None
        try:
            raw = metadata[VECTORS_KEY.encode()]
            fields = json.loads(raw)
            version = fields.pop("format")
            if version != FORMAT_VERSION:
                raise DescriptionError(f"it has version {_shown(version)} of the format, and this program reads 1")
            if fields.pop("checksum") != _checksum({"format": version, **fields}):
                raise ValueError("the checksum is another one")
            number, is_last, end = fields.pop("part"), fields.pop("last"), Position(**fields.pop("end"))
            checksums = tuple(fields.pop("row_groups"))
            description = Description(**fields)
            _check(description)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DescriptionError("the description of its vectors is damaged; embed the texts again") from None
        own = replace(description, kinds=tuple(description.kinds), dropped_ids=tuple(description.dropped_ids))
        return cls(own, number, end, is_last, checksums)


def _checksum(fields: Mapping[str, Any]) -> int:
    """The CRC-32 of a description."""
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def _check(description: Description) -> None:
    """Raise ValueError for values that no description has."""
    texts = (description.model, description.model_dtype, description.vocabulary, description.dtype)
    numbers = (description.dense_size, description.colbert_size, description.max_length, description.chunk_tokens)
    if not all(isinstance(text, str) for text in texts) or not description.model:
        raise ValueError("a text is missing")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a number is missing")
    if not set(description.kinds) <= {"dense", "sparse", "colbert"} or not description.kinds:
        raise ValueError("a kind is unknown")
    if description.revision is not None and not isinstance(description.revision, str):
        raise ValueError("the revision is not a text")


def _shown(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 64 else f"{text[:60]} ..."
