"""Running PostgreSQL when we are root, which PostgreSQL itself refuses.

The server then runs as the owner of its data folder, which at first is
``nobody``: no account is made. That user must be able to reach the data folder
and the wheel's files, which under root are often below a folder of mode 700.
"""

from __future__ import annotations

import logging
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

logger = logging.getLogger(__name__)


class ProcessOptions(TypedDict, total=False):
    """The keywords of `subprocess.run` that say who a process runs as."""

    user: int
    group: int
    extra_groups: list[int]


def owner_of_server(data: Path) -> tuple[int, int] | None:
    """The user and group that the server in ``data`` runs as; None: as we do."""
    if os.geteuid() != 0:
        return None
    if data.exists() and (status := data.stat()).st_uid != 0:
        return status.st_uid, status.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def process_options(owner: tuple[int, int] | None) -> ProcessOptions:
    """Run a process as ``owner``, in none of root's groups."""
    if owner is None:
        return {}
    return {"user": owner[0], "group": owner[1], "extra_groups": []}


def open_the_way_to(paths: Iterable[Path]) -> None:
    """Let other users pass through the folders above ``paths``, and not look into them."""
    above = {
        parent for path in paths for parent in (*path.absolute().parents, *path.resolve().parents)
    }
    opened = [folder for folder in sorted(above) if _add_mode(folder, stat.S_IXOTH)]
    if opened:
        logger.warning(
            "PostgreSQL runs as another user than root: search permission (o+x) was added to %s",
            ", ".join(map(str, opened)),
        )


def make_readable(folders: Iterable[Path]) -> None:
    """chmod -R o+rX: what a umask of 077 took from the wheel's files at installation."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            mode = path.stat().st_mode
            runnable = stat.S_ISDIR(mode) or mode & stat.S_IXUSR
            _add_mode(path, stat.S_IROTH | (stat.S_IXOTH if runnable else 0))


def _add_mode(path: Path, wanted: int) -> bool:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & wanted == wanted:
        return False
    path.chmod(mode | wanted)
    return True
