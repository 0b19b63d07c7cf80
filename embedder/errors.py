"""The errors of the worker: their base, those of any request and those of the model.

    WorkerError
    ├── InvalidRequest      the request cannot be served as written
    ├── NotFound            what the request names does not exist
    ├── Overloaded          the worker has no room now; retry later
    ├── ModelFailure        the model could not produce a vector
    │   └── DeviceLost          the device computes no more; another worker can
    ├── Cancelled           the work was cancelled
    ├── Internal            a defect of the worker
    └── (the errors of the store: qdrant_sink.errors)

    ConfigurationError      never answered to a request: the worker refuses to start

A message names the limit and the actual value and never quotes a text, a key or a host. What else an error has to
say it says as values. Names, codes and statuses on the wire are given to these types in `service.wire.errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class FieldError:
    """An invalid field of a request.

    Attributes:
        field: path of the field, such as `qdrant.ids[3]`.
        message: begins with the field.
    """

    field: str
    message: str


class WorkerError(Exception):
    """Base of all errors that a request can end with.

    Attributes:
        retryable: whether the same request can succeed later, unchanged; by default what the class says.
        message: for the caller; says what is wrong, the limit and the value.
    """

    retryable: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def saying(self, message: str) -> Self:
        """The same error with another message."""
        error = type(self).__new__(type(self), message)  # not by `copy`, which knows no keyword arguments
        error.__dict__.update(self.__dict__)
        error.message = message
        return error

    def at(self, field: str) -> Self:
        """The same error about a field of the request, whose path stands in front of the message."""
        return self.saying(f"{field}: {self.message}")


class InvalidRequest(WorkerError):
    """The request cannot be served as it is written.

    Attributes:
        fields: the fields at fault, where they are known one by one.
    """

    def __init__(self, message: str, *, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)

    def at(self, field: str) -> Self:
        """The error at a field path, as `WorkerError.at`; `fields` names the path, too."""
        error = super().at(field)
        error.fields = (FieldError(field, error.message),)
        return error


class NotFound(WorkerError):
    """A collection, point or operation that a request names does not exist.

    Attributes:
        collection: the collection in which points are missing; None where something else is.
        ids: the missing points, as their caller gave them.
        fields: the field that names what is missing, where that is known.
    """

    def __init__(
        self,
        message: str,
        *,
        collection: str | None = None,
        ids: Sequence[int | str] = (),
        fields: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(message)
        self.collection = collection
        self.ids = tuple(ids)
        self.fields = tuple(fields)


class Overloaded(WorkerError):
    """The worker has no room for the request now."""

    retryable = True


class ModelFailure(WorkerError):
    """The model could not produce what was asked of it."""


class DeviceLost(ModelFailure):
    """The device computes no more until the process starts anew; another worker can serve the request."""

    retryable = True


class Cancelled(WorkerError):
    """The work was cancelled before it was done."""


class Internal(WorkerError):
    """A defect of the worker itself."""


class ConfigurationError(Exception):
    """The settings cannot work; the message names the setting and the fix."""


def whereabouts(error: BaseException) -> str:
    """Type and source line of an unexpected exception, for the log: its message may quote a user's text."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    if frame is None:
        return type(error).__name__
    code = frame.tb_frame.f_code
    file = "/".join(code.co_filename.replace("\\", "/").split("/")[-2:])
    return f"{type(error).__name__} in {code.co_name} ({file}:{frame.tb_lineno})"
