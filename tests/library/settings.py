"""The project that has this app."""

from cartrita.settings import *  # noqa: F403

INSTALLED_APPS = [*INSTALLED_APPS, "tests.library"]  # noqa: F405
