"""The project's settings for a process that is to be killed at a named step.

CRASH_AT names it, like ``rebuild:swap``; CRASH_SIGNAL is the signal's name, SIGKILL
unless given. The signal is sent by the log handler that hears of the step, so that it
comes exactly there. DJANGO_SETTINGS_MODULE=tests.crash_settings in `manage`.
"""

from __future__ import annotations

import logging
import os
import signal

from cartrita.settings import *  # noqa: F403


class _Crash(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "step", None) == os.environ["CRASH_AT"]:
            os.kill(os.getpid(), signal.Signals[os.environ.get("CRASH_SIGNAL", "SIGKILL")])


_steps = logging.getLogger("cartrita_search.ops.steps")
_steps.setLevel(logging.INFO)
_steps.addHandler(_Crash())
