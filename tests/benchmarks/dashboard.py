"""Seconds that the admin's dashboard takes with a million recorded searches of 30 days."""

from __future__ import annotations

import time

from django.contrib.auth import get_user_model
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import Client, override_settings
from django.urls import reverse

from .report import Measurement, show

ROWS = 1_000_000
#: The best of so many.
TRIES = 3


def run(connection: BaseDatabaseWrapper) -> bool:
    """Record, then open the pages that read the record."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE search_performance_metrics")
        cursor.execute(
            """
            INSERT INTO search_performance_metrics (user_id, search_type, query_hash,
                result_count, execution_time_ms, cache_hit, created_at, metadata)
            SELECT i %% 1000, (ARRAY['hybrid', 'vector', 'keyword'])[1 + i %% 3],
                md5((i %% 5000)::text), i %% 20, exp(1 + 3 * random()), i %% 4 = 0,
                now() - interval '30 days' * (1 - i / %(rows)s::float8), '{"model": "mini"}'
            FROM generate_series(1, %(rows)s) AS i
            """,
            {"rows": ROWS},
        )
        cursor.execute("VACUUM (ANALYZE) search_performance_metrics")
    user = get_user_model()._default_manager.create_user("grace", is_staff=True, is_superuser=True)
    client = Client()
    measured = []
    with override_settings(ALLOWED_HOSTS=["*"]):
        client.force_login(user)
        dashboard = reverse("admin:cartrita_search_dashboard")
        configs = reverse("admin:cartrita_search_retrievalconfig_changelist")
        client.get(dashboard)  # imports and templates
        for name, page, query in (
            ("dashboard, 24 hours: s", dashboard, {"range": "24h"}),
            ("dashboard, 7 days: s", dashboard, {"range": "7d"}),
            ("dashboard, 30 days: s", dashboard, {"range": "30d"}),
            ("list of configurations: s", configs, {}),
        ):
            seconds = []
            for _ in range(TRIES):
                started = time.perf_counter()
                response = client.get(page, query)
                seconds.append(time.perf_counter() - started)
                if response.status_code != 200:
                    raise RuntimeError(f"{page} answered {response.status_code}")
            measured.append(Measurement(name, min(seconds), at_most=1.0))
    return show(measured)
