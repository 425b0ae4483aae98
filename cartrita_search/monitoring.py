"""Middleware that answers probes and Prometheus before anything else looks at the request.

They come by a pod's address, over plain HTTP and without a cookie: ALLOWED_HOSTS would
refuse the one, SECURE_SSL_REDIRECT send the other away, a session be looked up for
nothing. None of these pages looks at the host.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

from .health import healthz, readyz
from .prometheus import metrics_page

PAGES: dict[str, Callable[[HttpRequest], HttpResponse]] = {
    "/healthz": healthz,
    "/readyz": readyz,
    "/metrics": metrics_page,
}


@sync_and_async_middleware
def monitoring(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Answer `PAGES`, and pass every other request on."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            if page := PAGES.get(request.path_info):
                return await sync_to_async(page)(request)
            return await cast("Awaitable[HttpResponse]", get_response(request))

        return middleware

    def sync_middleware(request: HttpRequest) -> HttpResponse:
        if page := PAGES.get(request.path_info):
            return page(request)
        return cast("HttpResponse", get_response(request))

    return sync_middleware
