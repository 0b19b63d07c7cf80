"""The names of the model for clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service.settings import ANY_MODEL_NAME, Settings


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names that requests may call the model by.

    Attributes:
        names: the names, at least one. Answers carry the first.
        accepts_any: whether requests may also use any other name.
    """

    names: tuple[str, ...]
    accepts_any: bool = False

    @classmethod
    def of(cls, settings: Settings) -> ModelNames:
        """The names in `SERVED_MODEL_NAME`, or else the model's own."""
        names = tuple(dict.fromkeys(name for name in settings.served_model_name if name != ANY_MODEL_NAME))
        return cls(names or (_own_name(settings.model_id),), ANY_MODEL_NAME in settings.served_model_name)

    @property
    def first(self) -> str:
        """The name that answers carry."""
        return self.names[0]

    @property
    def listed(self) -> str:
        """The names for a message, behind "must be"."""
        names = ", ".join(f"'{name}'" for name in self.names)
        return names if len(self.names) == 1 else f"one of {names}"

    def __contains__(self, name: str) -> bool:
        """Whether a request may call the model by this name."""
        return self.accepts_any or name in self.names


def _own_name(model_id: str) -> str:
    return Path(model_id).name if Path(model_id).is_dir() else model_id  # clients must not see a local path
