"""Classes that settings name by their dotted path: made once a process, and let go by a fork."""

from __future__ import annotations

import os
import threading
from typing import Any, Generic, TypeVar

from django.utils.module_loading import import_string

from .errors import SearchError

T = TypeVar("T")


class Providers(Generic[T]):
    """The objects made so far from one setting.

    ``protocol`` is what each must be, ``noun`` what messages call it, ``setting`` the
    key of ``CARTRITA_SEARCH`` and ``unavailable`` the error raised when one cannot
    be made.
    """

    def __init__(
        self, protocol: type[T], noun: str, setting: str, unavailable: type[SearchError]
    ) -> None:
        self._protocol = protocol
        self._noun = noun
        self._unavailable = unavailable
        self._hint = f'Correct CARTRITA_SEARCH["{setting}"] and ["{setting}_OPTIONS"].'
        self._loading = threading.RLock()
        self._loaded: dict[tuple[str, str], T] = {}
        # A model's threads stay behind in a fork: the child runs on one thread, and hangs
        # when it exits, waiting for the others. So a server that forks after a warming-up
        # search lets go of the model first; parent and child load it again when they need it.
        if hasattr(os, "register_at_fork"):  # absent on Windows
            os.register_at_fork(before=self._unload)

    def get(self, path: str, options: dict[str, Any]) -> T:
        """The one made of that class with those options; made now if there is none yet."""
        key = (path, repr(sorted(options.items())))
        with self._loading:
            if key not in self._loaded:
                self._loaded[key] = self._load(path, options)
            return self._loaded[key]

    def _load(self, path: str, options: dict[str, Any]) -> T:
        try:
            made = import_string(path)(**options)
        except ImportError as error:
            raise self._unavailable(
                f"The {self._noun} {path!r} cannot be imported: {error}.", self._hint
            ) from error
        except TypeError as error:
            raise self._unavailable(
                f"The {self._noun} {path!r} refused its options: {error}.", self._hint
            ) from error
        if not isinstance(made, self._protocol):
            raise self._unavailable(
                f"What {path!r} makes is no {self._protocol.__name__}.", self._hint
            )
        return made

    def _unload(self) -> None:
        with self._loading:
            self._loaded.clear()
