"""A process dies at the very step that a test names."""

from __future__ import annotations

import signal

import pytest

from .conftest import Manage


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_process_is_killed_at_the_step_that_is_named(manage: Manage, name: str) -> None:
    script = (
        "from cartrita_search.ops.steps import step\n"
        "step('work', 'begin'); print('begun', flush=True)\n"
        "step('work', 'end'); print('ended', flush=True)"
    )
    done = manage(
        "shell",
        "--verbosity=0",
        "-c",
        script,
        DJANGO_SETTINGS_MODULE="tests.crash_settings",
        CRASH_AT="work:end",
        CRASH_SIGNAL=name,
    )
    assert done.returncode == -signal.Signals[name]
    assert done.stdout == "begun\n"
