"""What the embedded PostgreSQL and Redis have in common: one server per folder.

A server belongs to its folder, not to a process: any number of processes and
threads may call `EmbeddedServer.start` at once, and one server comes of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from django.conf import settings

from cartrita_search.errors import EmbeddedServerError

# Crash recovery after a large load is the slow case; a normal start takes 0.2 s.
TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.02

# A unix socket's address holds 107 bytes on Linux and 103 on macOS, of which
# "/.s.PGSQL.5432" takes 14.
SOCKET_FOLDER_BYTES = 88


@dataclass(frozen=True)
class Status:
    """What is known of a server now; ``pid`` is None when it does not run."""

    name: str
    running: bool
    pid: int | None
    folder: Path
    socket: Path
    log: Path


class EmbeddedServer(ABC):
    """A server that lives in ``<parent>/<name>`` and listens on a unix socket only."""

    name: ClassVar[str]

    def __init__(self, parent: Path) -> None:
        self.parent = parent.resolve()
        self.folder = self.parent / self.name

    @classmethod
    def from_settings(cls) -> Self:
        """The server of this project, in ``settings.EMBEDDED_DIR``."""
        return cls(settings.EMBEDDED_DIR)

    @property
    @abstractmethod
    def log(self) -> Path:
        """The server's log."""

    @property
    @abstractmethod
    def socket(self) -> Path:
        """The socket the server listens on."""

    @abstractmethod
    def pid(self) -> int | None:
        """The server's process, or None when there is none: a stale pid file is none."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether a client would be served now, found out by being one."""

    @abstractmethod
    def _launch(self) -> None:
        """Start the server's process. Called under the lock, with none running."""

    @abstractmethod
    def _shut_down(self) -> None:
        """Stop the server's process. Called under the lock, with one running."""

    def start(self) -> bool:
        """Make sure the server runs; True when it was this call that started it.

        Raises `EmbeddedServerError` when it cannot be started.
        """
        with self._sole():
            if self.answers():
                return False
            launched = False
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while not self.answers():
                if self.pid() is None:
                    if launched:
                        raise self._error("ended right after its start")
                    self._launch()
                    launched = True
                elif time.monotonic() > deadline:
                    raise self._error(f"does not answer after {TIMEOUT_SECONDS:.0f} s")
                time.sleep(POLL_SECONDS)
            return launched

    def stop(self) -> bool:
        """Stop the server; False when none was running."""
        if not self.parent.is_dir():
            return False
        with self._sole():
            if self.pid() is None:
                return False
            self._shut_down()
            return True

    def status(self) -> Status:
        """What is known of the server, without starting it."""
        pid = self.pid()
        return Status(
            name=self.name,
            running=pid is not None and self.answers(),
            pid=pid,
            folder=self.folder,
            socket=self.socket,
            log=self.log,
        )

    @contextmanager
    def _sole(self) -> Iterator[None]:
        """Keep every other process and thread from starting or stopping this server.

        The kernel lets go of the lock when its holder dies, however it dies.
        """
        try:
            self.parent.mkdir(parents=True, exist_ok=True)
            with (self.parent / f"{self.name}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise self._error(f"cannot be used ({error})") from error

    def _make_socket_folder(self, owner: tuple[int, int] | None = None) -> Path:
        """Make the folder of the socket, for ``owner`` alone (by default ourselves)."""
        folder = socket_folder(self.folder)
        if folder != self.folder:
            uid, gid = owner or (os.geteuid(), os.getegid())
            folder.mkdir(mode=0o700, exist_ok=True)
            # Anybody may make a folder under the temporary one, with our name too.
            if folder.is_symlink() or folder.stat().st_uid not in {os.geteuid(), uid}:
                raise self._error(f"needs {folder} for its socket, and that is another user's")
            os.chown(folder, uid, gid)
        return folder

    def _error(self, what: str) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"The embedded {self.name} {what}.",
            f"See {self.log}; to begin afresh, run `manage.py embedded stop`"
            f" and remove {self.folder}.",
        )


def socket_folder(folder: Path) -> Path:
    """Where the server in ``folder`` puts its socket: there, if the address can hold it.

    Otherwise a folder under the system's temporary one, named by a hash. A
    name with a comma, a quote or a space goes there too: libpq and the server
    both read such a path as a list.
    """
    if len(bytes(folder)) <= SOCKET_FOLDER_BYTES and re.fullmatch(r"[\w./+-]+", str(folder)):
        return folder
    digest = hashlib.sha256(bytes(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"cartrita-{digest}"
