"""What belongs to one request, or to one run of a command, can be told from the log.

`request_id` gives each request an id: the client's or proxy's X-Request-ID if it is a
sane one, else a new one; the response carries it too. `JsonFormatter` writes records as
JSON, one a line, each with the ``request_id`` it was logged for, or with the ``run_id``
of the process where there is none: a management command is one process.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, cast
from uuid import uuid4

from asgiref.sync import iscoroutinefunction
from django.core.signals import request_finished
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware
from pythonjsonlogger import core
from pythonjsonlogger.json import JsonFormatter as LibraryFormatter

HEADER = "X-Request-ID"

#: UUIDs, and what proxies make. Nothing that could end a line or fill a disk.
_SANE = re.compile(r"[A-Za-z0-9._-]{8,64}")

#: Attributes of Django's records that hold what people typed: the request with its
#: query string, a statement with its parameters. A log is read by more than may see it.
_NOT_LOGGED = ("request", "sql", "params", "server_time")

_current: ContextVar[str | None] = ContextVar("request_id", default=None)
_run_id = uuid4().hex


class JsonFormatter(LibraryFormatter):
    """``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, an id, and extras."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message"],
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
            reserved_attrs=[*core.RESERVED_ATTRS, *_NOT_LOGGED],
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        current = _current.get()
        log_data |= {"run_id": _run_id} if current is None else {"request_id": current}
        return super().process_log_record(log_data)


@sync_and_async_middleware
def request_id(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Middleware, to stand first: what comes before it logs without an id."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            given = _begin(request)
            response = await cast("Awaitable[HttpResponse]", get_response(request))
            response[HEADER] = given
            return response

        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponse:
        given = _begin(request)
        response = cast("HttpResponse", get_response(request))
        response[HEADER] = given
        return response

    return sync_middleware


def _begin(request: HttpRequest) -> str:
    offered = request.headers.get(HEADER, "")
    given = offered if _SANE.fullmatch(offered) else uuid4().hex
    _current.set(given)
    return given


# Not at the end of the middleware: Django logs a response of 400 and above after that.
@receiver(request_finished)
def _end(**kwargs: object) -> None:
    _current.set(None)
