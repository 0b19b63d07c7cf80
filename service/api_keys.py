"""The keys that the HTTP server accepts, each with the name that the audit shows."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

from pydantic import SecretStr

ONLY_KEY: Final = "API_KEY"
"""Name of a key that stands alone and without a name."""

_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"
"""Pattern of a key's name, which stands in log lines."""

_RESERVED: Final = frozenset({"anyone", "queue"})
"""Names of callers without a key."""

_QUOTES: Final = "\"'"

_SEVERAL: Final = 'several keys are a list with commas, a JSON list or a JSON object such as {"name": "key"}'


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """One or more keys, all of which are valid at the same time.

    Attributes:
        keys: the keys by name.
    """

    keys: Mapping[str, SecretStr]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a key, a list of keys with commas, a JSON list of keys, or a JSON object of keys by name.

        A key that has a comma, or begins with a bracket or a brace, is written as a JSON list. So are keys with quotes
        around them: in a list with commas these are a mistake, since they would be part of the keys.

        Raises:
            ValueError: the text has no key, an invalid key or name, or one of them twice. The message shows no key.
        """
        if text.startswith(("[", "{")):
            return cls._of_json(text)
        parts = [part for part in map(str.strip, text.split(",")) if part]
        if len(parts) > 1 and any(part[0] in _QUOTES or part[-1] in _QUOTES for part in parts):
            raise ValueError(f"must have no quotes around the keys of a list with commas; {_SEVERAL}")
        return cls._numbered(parts)

    def name_of(self, sent: bytes) -> str | None:
        """The name of a key; None for an unknown key. The time depends on the length of `sent` alone."""
        name = None
        for known, key in self.keys.items():  # all of them, so that the time does not say which one is nearly right
            if hmac.compare_digest(sent, key.get_secret_value().encode()):
                name = known
        return name

    @classmethod
    def _of_json(cls, text: str) -> Self:
        try:
            parsed = json.loads(text, object_pairs_hook=_distinct)
        except RecursionError:
            parsed = None
        except json.JSONDecodeError:
            raise ValueError(f"must be valid JSON where it begins with [ or {{; {_SEVERAL}") from None
        if isinstance(parsed, list):
            return cls._numbered(parsed)
        if isinstance(parsed, dict):
            return cls._checked(parsed)
        raise ValueError(f"must be a key or several; {_SEVERAL}")

    @classmethod
    def _numbered(cls, keys: Sequence[object]) -> Self:
        if len(keys) == 1:
            return cls._checked({ONLY_KEY: keys[0]})
        return cls._checked({f"{ONLY_KEY}-{number}": key for number, key in enumerate(keys, 1)})

    @classmethod
    def _checked(cls, keys: Mapping[str, object]) -> Self:
        if not keys:
            raise ValueError("must not be blank; leave the variable empty, or out, for no key")
        for name in keys:
            if not re.fullmatch(_NAME, name) or name in _RESERVED:
                rule = "1 to 64 characters of A-Z a-z 0-9 . _ - that begin with a letter or digit"
                raise ValueError(f"must have names of {rule}, other than {' and '.join(sorted(_RESERVED))}")
        secrets = {name: SecretStr(checked_key(key)) for name, key in keys.items()}
        if len({secret.get_secret_value() for secret in secrets.values()}) < len(secrets):
            raise ValueError("must not have a key twice, since the audit says by its name who deletes")
        return cls(secrets)


def checked_key(key: object) -> str:
    """A key that can be sent in an HTTP header.

    Raises:
        ValueError: it cannot. The message does not show the key.
    """
    if not isinstance(key, str):
        raise ValueError("must be a string")  # noqa: TRY004 - pydantic translates a ValueError alone
    if not key.strip():
        raise ValueError("must not be blank; leave the variable empty, or out, for no key")
    if not (key.isascii() and key.isprintable()):
        raise ValueError("must be printable ASCII without line breaks, since it is sent in an HTTP header")
    if key != key.strip():
        raise ValueError("must not begin or end with a blank, which HTTP removes from a header")
    return key


def _distinct(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    pairs = list(pairs)
    if len(dict(pairs)) < len(pairs):
        raise ValueError("must not have a name twice")
    return dict(pairs)
