"""The arguments of the commands by the fields of the requests that they make, for errors in terms of the command.

The operations and the wire name the field of a request that is at fault. A user of a command has written no request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Final

from embedder import WorkerError

_AFTER_FIELD: Final = r"(?=:| must | is required| is not valid| cannot | needs )"
"""What follows the field with which a message begins. A message may begin with the same word as part of a sentence,
such as "collection 'notes' does not exist"."""


class Arguments:
    """The arguments of a command.

    Args:
        fields: arguments by the paths of fields, without `qdrant.` at their beginning. In an argument `{}` stands for
            the number of an item, from 1.

    Attributes:
        fields: the same.
    """

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.fields = fields

    def message(self, text: str) -> str:
        """A message of an error in terms of the command.

        Args:
            text: the message, which may begin with a field, and name others after that.
        """
        beginning = self._first.match(text)
        first = ""
        if beginning is not None:
            first, text = self._argument(beginning), text[beginning.end() :]
            text = text.removeprefix(":") if text.startswith(": must ") else text
        return first + self._inner.sub(lambda match: self.fields[match["field"]], text)

    def error(self, error: WorkerError) -> WorkerError:
        """The same error with its message in terms of the command."""
        return error.saying(self.message(error.message))

    def _argument(self, match: re.Match[str]) -> str:
        """The argument of a field, with the path below it if it is an object that the user has written."""
        argument, path = self.fields[match["field"]], match["path"]
        index = re.fullmatch(r"\[(\d+)\]", path)
        if "{}" in argument:
            return argument.format(int(index[1]) + 1) if index else argument.replace("{}", "").strip()
        return argument if index else f"{argument}{path}"

    @cached_property
    def _first(self) -> re.Pattern[str]:
        return re.compile(rf"(?:qdrant\.)?(?P<field>{_any(self.fields)})(?P<path>(?:[.\[][^ :]*)?){_AFTER_FIELD}")

    @cached_property
    def _inner(self) -> re.Pattern[str]:
        """Names that are no ordinary words: paths, and those of several words. A quoted name is a user's own."""
        names = [field for field in self.fields if "." in field or field != field.lower()]
        paths = rf"(?:qdrant\.)?(?P<field>{_any(names)})(?! or| in QDRANT_)(?: in the request)?"
        return re.compile(rf"(?<![\w.'\"-]){paths}(?![\w.'\"])") if names else re.compile(r"(?!)")


def _any(names: Mapping[str, str] | list[str]) -> str:
    """A pattern that matches one of the names, the longest first."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


_TEXTS: Final = {
    "vectors": "--vectors",
    "chunk": "--chunk-tokens",
    "chunk.maxTokens": "--chunk-tokens",
    "chunk.overlap": "--chunk-overlap",
    "maxTokens": "--chunk-tokens",
    "colbertPooling": "--colbert-pooling",
}

ARGUMENTS: Final[Mapping[str, Arguments]] = {
    "ask": Arguments(
        {
            "queries": "QUESTION {}",
            "collection": "--collection",
            "limit": "--limit",
            "using": "--using",
            "filter": "--filter",
            "rerank": "--rerank",
            "explain": "--explain",
            "textKey": "--text-key",
        }
    ),
    "bulk": Arguments(
        {
            **_TEXTS,
            "collection": "--collection",
            "alias": "--alias",
            "idScope": "--alias",
            "mode": "--insert-only",
            "insertOnly": "--insert-only",
            "textKey": "--text-key",
            "loadId": "--load-id",
            "shard": "--shard",
            "deferIndex": "--defer-index",
            "input.format": "--format",
            "input.encoding": "--encoding",
            "input.columns": "--columns",
            "input.id-field": "--id-field",
            "input.text-field": "--text-field",
            "input.payload-fields": "--payload-fields",
            "input.vectors-in": "--vectors-in",
        }
    ),
    "complete": Arguments(
        {
            "collection": "COLLECTION",
            "kinds": "--kinds",
            "into": "--into",
            "alias": "--alias",
            "textKey": "--text-key",
            "poolColbert": "--colbert-pooling",
        }
    ),
    "embed": Arguments(_TEXTS),
    "reindex": Arguments(
        {
            "collection": "FROM",
            "into": "TO",
            "kinds": "--kinds",
            "embed": "--embed",
            "vectors": "--vector",
            "alias": "--alias",
            "textKey": "--text-key",
            "poolColbert": "--colbert-pooling",
            "allowRejected": "--allow-rejected",
            "allowEmpty": "--allow-empty",
            "prune": "--prune",
            "again": "--again",
            "workers": "--workers",
        }
    ),
}
"""The arguments by the name of the command. Commands that make no request are not here."""
