"""The named steps of long work, as they begin: for the log, and for tests that crash there."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def step(operation: str, name: str, subject: str = "") -> None:
    """Log that ``operation`` begins its step ``name``; whatever came before is committed.

    What each operation promises is promised for a process that is killed here. Its
    module lists the names as ``STEPS``, in their order.
    """
    logger.info("%s: %s %s", operation, name, subject, extra={"step": f"{operation}:{name}"})
