"""Name -> object tables: tasks, objectives, noise backends, tuners, estimators.

A registry imports nothing until a name is asked for: `discover` names a package whose modules register
themselves, `lazy` names one object as "module:attribute", and `entry_points` lets an installed plug-in add names.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar, cast

S = TypeVar("S")
T = TypeVar("T")


def did_you_mean(name: str, known: list[str]) -> str:
    """Return " (did you mean 'X'?)" for the closest of `known` (case-blind), or ""."""
    folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" (did you mean '{folded[close[0]]}'?)" if close else ""


class Registry(Generic[T]):
    """A table of named objects of one kind; `kind` is the word that error messages use."""

    def __init__(self, kind: str, *, package: str | None = None, entry_points: str | None = None):
        self.kind = kind
        self._package = package
        self._entry_points = entry_points
        self._loaders: dict[str, Callable[[], T]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[S], S]:
        """Decorator (or plain call) that puts an object into the table under `name`."""

        def add(item: S) -> S:
            assert name not in self._loaders, f"{self.kind} {name!r} is registered twice"
            self._loaders[name] = lambda: cast(T, item)
            return item

        return add

    def lazy(self, name: str, target: str) -> None:
        """Put "module:attribute" into the table under `name`, to be imported when it is asked for."""
        module, attribute = target.split(":")
        self._loaders[name] = lambda: getattr(importlib.import_module(module), attribute)

    def names(self) -> list[str]:
        """All known names, sorted."""
        self._discover()
        return sorted(self._loaders)

    def get(self, name: str) -> T:
        """The object called `name`. Raises ValueError, with the nearest known name, where there is none."""
        self._discover()
        if name not in self._loaders:
            raise ValueError(
                f"unknown {self.kind} '{name}'{did_you_mean(name, self.names())}; known: {', '.join(self.names())}"
            )
        return self._loaders[name]()

    def collect(self, run: Callable[[], object]) -> dict[str, T]:
        """What `run` registers, by name; the table does not keep it."""
        self._discover()
        kept, self._loaders = self._loaders, dict(self._loaders)
        try:
            run()
            return {name: load() for name, load in self._loaders.items() if name not in kept}
        finally:
            self._loaders = kept

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        if self._package:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
        if self._entry_points:
            from importlib.metadata import entry_points  # takes a tenth of the time to answer --help

            for point in entry_points(group=self._entry_points):
                self._loaders.setdefault(point.name, point.load)
