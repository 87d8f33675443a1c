"""Settings of other simulators as plain values, and a reader that knows what was not read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from torch import Tensor

from ...runtime.converters import is_number
from ...runtime.errors import InputError

CLASS, BASES = "class", "bases"
"""Keys that say which class an object is of, and which ones that has above it."""
_DEEPEST = 12


def plain(value: object, depth: int = 0) -> Any:
    """``value`` in terms of dicts, lists, strings, numbers, bools and None, as JSON has them.

    An object becomes a dict of its public attributes with the name of its class, an enumeration's
    member its name, a class its name. No module is imported.
    """
    if depth > _DEEPEST:
        raise InputError("settings are nested too deeply, or contain themselves")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1) for item in value]
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        names = list(getattr(value, "__dict__", {}))
    kind = type(value)
    out: dict[str, Any] = {CLASS: kind.__name__}
    bases = [base.__name__ for base in kind.__mro__[1:-1]]
    if bases:
        out[BASES] = bases
    for name in names:
        if not name.startswith("_"):
            out[name] = plain(getattr(value, name, None), depth + 1)
    return out


def word(value: object) -> str:
    """An enumeration's member or value, however it is written: ``AbsMax`` is ``ABS_MAX``."""
    return re.sub(r"[^a-z0-9]", "", str(value).rpartition(".")[2].lower())


class Settings:
    """A dict of settings with defaults; it knows which ones were never asked for."""

    def __init__(self, values: object, path: str = "") -> None:
        if values is None:
            values = {}
        if isinstance(values, str):
            values = {CLASS: values}
        if not isinstance(values, Mapping):
            raise InputError(f"{path or 'settings'} must be a dict or an object, got {values!r}")
        self._values = values
        self._left = {key for key in values if key not in (CLASS, BASES)}
        self._parts: list[Settings] = []
        self.path = path

    @property
    def kind(self) -> str:
        """Name of the class that these are of; empty if unknown."""
        return str(self._values.get(CLASS, ""))

    @property
    def kinds(self) -> tuple[str, ...]:
        """That name and those of the classes above it."""
        return (self.kind, *(str(base) for base in self._values.get(BASES, ())))

    @property
    def has_any(self) -> bool:
        """Whether anything is given, the class aside."""
        return any(key not in (CLASS, BASES) for key in self._values)

    def has(self, name: str) -> bool:
        """Whether it is given, and not None."""
        return self._values.get(name) is not None

    def mentions(self, name: str) -> bool:
        """Whether it is given at all, also as None."""
        return name in self._values

    def at(self, name: str) -> str:
        """Path of a setting."""
        return f"{self.path}.{name}" if self.path else name

    def raw(self, name: str, default: Any = None) -> Any:
        """The value as it is."""
        self._left.discard(name)
        value = self._values.get(name)
        return default if value is None else value

    def part(self, name: str) -> Settings:
        """Settings of a part."""
        part = Settings(self.raw(name), self.at(name))
        self._parts.append(part)
        return part

    def number(self, name: str, default: float) -> float:
        """InputError if it is no finite number."""
        value = self.raw(name, default)
        if not is_number(value):
            raise InputError(f"{self.at(name)} must be a finite number, got {value!r}")
        return float(value)

    def count(self, name: str, default: int) -> int:
        """InputError if it is no whole number >= 0."""
        value = self.number(name, default)
        if value < 0 or value != int(value):
            raise InputError(f"{self.at(name)} must be a whole number >= 0, got {value!r}")
        return int(value)

    def flag(self, name: str, default: bool) -> bool:
        """InputError if it is no bool."""
        value = self.raw(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.at(name)} must be true or false, got {value!r}")
        return value

    def word(self, name: str, default: str, known: tuple[str, ...]) -> str:
        """One of ``known``, which are in the form of ``word``."""
        value = word(self.raw(name, default))
        if value not in known:
            raise InputError(f"{self.at(name)} must be one of {', '.join(known)}, got {value!r}")
        return value

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """InputError if it is no list of finite numbers."""
        value = self.raw(name, default)
        if not isinstance(value, list | tuple) or not all(is_number(v) for v in value):
            raise InputError(f"{self.at(name)} must be a list of numbers, got {value!r}")
        return tuple(float(v) for v in value)

    def ignore(self, *names: str) -> None:
        """Settings that mean nothing to a target."""
        self._left.difference_update(names)

    def unread(self) -> Iterator[str]:
        """Paths of what was given and never asked for, parts included."""
        yield from sorted(self.at(str(name)) for name in self._left)
        for part in self._parts:
            yield from part.unread()
