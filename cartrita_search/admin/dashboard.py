"""The dashboard: what operators and staff look at first. Each panel takes its permission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models import Count, Q, Sum
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from ..models import OperatorAction, RedisSession, SearchPerformanceMetric, VectorSearchStats
from ..ops import doctor
from ..ops.vector_indexes import IndexStatus, statuses
from . import charts


class Range(NamedTuple):
    """A stretch of time up to now, and into what parts it is cut."""

    label: str
    span: timedelta
    part: timedelta
    #: How a part is labelled, and which of the labels are written out.
    format: str
    every: int


RANGES = {
    "24h": Range("24 hours", timedelta(hours=24), timedelta(hours=1), "%H:%M", 4),
    "7d": Range("7 days", timedelta(days=7), timedelta(hours=6), "%d %b %H:%M", 8),
    "30d": Range("30 days", timedelta(days=30), timedelta(days=1), "%d %b", 5),
}

#: Searches whose times are sorted for the percentiles; of more, evenly so many.
SAMPLE = 100_000

#: Zero-hit questions shown.
QUESTIONS = 10

#: How long what reads whole tables is kept, in seconds, and how long one rule of the
#: doctor may look.
HEALTH_SECONDS = 300
PATIENCE_SECONDS = 2.0

#: What the panels are about, by the name of their permission.
PANELS = (
    "searchperformancemetric",
    "embeddingmodel",
    "redissession",
    "operatoraction",
    "vectorsearchstats",
)


@dataclass(slots=True)
class Totals:
    """Searches of one kind."""

    name: str
    searches: int = 0
    cached: int = 0
    zero_hits: int = 0
    #: Milliseconds; None without a search.
    p50: float | None = None
    p95: float | None = None

    def add(self, searches: int, cached: int, zero_hits: int) -> None:
        self.searches += searches
        self.cached += cached
        self.zero_hits += zero_hits

    @property
    def cached_share(self) -> float | None:
        """Percent."""
        return 100 * self.cached / self.searches if self.searches else None

    @property
    def zero_share(self) -> float | None:
        """Percent."""
        return 100 * self.zero_hits / self.searches if self.searches else None


@dataclass(frozen=True, slots=True)
class Usage:
    """Searches of a stretch of time: all and by type, and by part of the time."""

    by_type: list[Totals]
    parts: list[Totals]
    #: Of each part: the searches of each type, and all.
    counts: list[list[int]]
    volume: SafeString
    latency: SafeString

    @property
    def figures(self) -> list[tuple[Totals, list[int]]]:
        """What both charts are drawn from."""
        return list(zip(self.parts, self.counts, strict=True))


def view(model_admin: Any, request: HttpRequest) -> HttpResponse:
    """The page."""
    allowed = _allowed(request)
    chosen = RANGES.get(request.GET.get("range", ""), RANGES["24h"])
    context = model_admin.admin_site.each_context(request) | {
        "title": "Search dashboard",
        "opts": model_admin.opts,
        "allowed": allowed,
        "ranges": RANGES.items(),
        "chosen": chosen,
    }
    if "searchperformancemetric" in allowed:
        since = timezone.now() - chosen.span
        context |= {"usage": usage(chosen, since), "questions": zero_hit_questions(since)}
    if "embeddingmodel" in allowed:
        context["indexes"] = [(status, badge_html(status)) for status in statuses()]
    if "redissession" in allowed:
        context["sessions"] = (
            RedisSession.objects.filter(revoked_at=None, expires_at__gt=timezone.now())
            .order_by("data_type")
            .values_list("data_type")
            .annotate(count=Count("*"))
        )
    if "operatoraction" in allowed:
        context["last"] = [(name, _last(name)) for name in ("backup", "rebuild", "restore")]
    return TemplateResponse(request, "admin/cartrita_search/dashboard.html", context)


def health_view(model_admin: Any, request: HttpRequest) -> HttpResponse:
    """What reads whole tables: a part of the page where a script asks for it, else a page."""
    allowed = _allowed(request)
    context: dict[str, Any] = {"allowed": allowed}
    if "vectorsearchstats" in allowed:
        context["freshness"] = _kept("freshness", _freshness)
    if "operatoraction" in allowed:
        thresholds = doctor.Thresholds(patience=PATIENCE_SECONDS)
        context["examination"] = _kept("doctor", lambda: doctor.examine(thresholds=thresholds))
    name = "health_part" if request.headers.get("X-Requested-With") == "fetch" else "health"
    if name == "health":
        context |= model_admin.admin_site.each_context(request) | {
            "title": "Search health",
            "opts": model_admin.opts,
        }
    return TemplateResponse(request, f"admin/cartrita_search/{name}.html", context)


def usage(chosen: Range, since: datetime) -> Usage:
    """Counts are exact; percentiles of more than `SAMPLE` searches are of an even part."""
    names = [each.value for each in SearchPerformanceMetric.SearchType]
    by_type = {name: Totals(name) for name in names}
    whole = Totals("all")
    count = int(chosen.span / chosen.part)
    starts = [since + chosen.part * position for position in range(count)]
    parts = [Totals(f"{timezone.localtime(start):{chosen.format}}") for start in starts]
    volume = {name: [0] * count for name in names}
    arguments: dict[str, Any] = {"part": chosen.part, "since": since}
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT extract(epoch FROM date_bin(%(part)s, created_at, %(since)s) - %(since)s)
                    / extract(epoch FROM %(part)s),
                search_type, count(*), count(*) FILTER (WHERE cache_hit),
                count(*) FILTER (WHERE result_count = 0)
            FROM search_performance_metrics
            WHERE created_at >= %(since)s
            GROUP BY 1, 2
            """,
            arguments,
        )
        for position, name, *numbers in cursor.fetchall():
            # What arrived since the page was begun belongs to the last part.
            at = min(int(position), count - 1)
            for totals in (by_type[name], parts[at], whole):
                totals.add(*numbers)
            volume[name][at] += numbers[0]
        # Sorting a million times takes a second, and tells nothing more.
        arguments["every"] = max(1, whole.searches // SAMPLE)
        cursor.execute(
            """
            SELECT extract(epoch FROM part - %(since)s) / extract(epoch FROM %(part)s),
                search_type,
                percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY execution_time_ms)
            FROM (
                SELECT date_bin(%(part)s, created_at, %(since)s) AS part, search_type,
                    execution_time_ms
                FROM search_performance_metrics
                WHERE created_at >= %(since)s AND id %% %(every)s = 0
            ) AS sampled
            GROUP BY GROUPING SETS ((part), (search_type), ())
            """,
            arguments,
        )
        for position, name, percentiles in cursor.fetchall():
            if name is not None:
                totals = by_type[name]
            elif position is not None:
                totals = parts[min(int(position), count - 1)]
            else:
                totals = whole
            totals.p50, totals.p95 = percentiles or (None, None)
    labels = [part.name for part in parts]
    latency = {
        "p50, ms": [part.p50 for part in parts],
        "p95, ms": [part.p95 for part in parts],
    }
    return Usage(
        [*by_type.values(), whole],
        parts,
        [
            [*(each[at] for each in volume.values()), part.searches]
            for at, part in enumerate(parts)
        ],
        charts.bars(labels, volume, chosen.every),
        charts.lines(labels, latency, chosen.every),
    )


def zero_hit_questions(since: datetime) -> Sequence[tuple[str | None, str | None, int, datetime]]:
    """Text where it is kept, hash, how often, and when last: the most frequent first.

    Rows of other clients may have a text and no hash.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT max(query_text), query_hash, count(*), max(created_at)
            FROM search_performance_metrics
            WHERE created_at >= %s AND result_count = 0
            GROUP BY query_hash, CASE WHEN query_hash IS NULL THEN query_text END
            ORDER BY count(*) DESC, query_hash, max(query_text) LIMIT %s
            """,
            [since, QUESTIONS],
        )
        found: list[tuple[str | None, str | None, int, datetime]] = cursor.fetchall()
        return found


def badge_html(status: IndexStatus) -> SafeString:
    """How an index stands, in a word."""
    if status.is_valid is False:
        kind, word = "error", "invalid"
    elif status.needs:
        kind, word = "warning", "rebuild"
    else:
        kind, word = "good", "in order"
    return format_html('<span class="cs-badge cs-{}">{}</span>', kind, word)


def _allowed(request: HttpRequest) -> set[str]:
    """The panels that this member of staff may see."""
    if not request.user.has_module_perms("cartrita_search"):
        raise PermissionDenied
    return {name for name in PANELS if request.user.has_perm(f"cartrita_search.view_{name}")}


def _last(action: str) -> OperatorAction | None:
    # By the primary key, backwards: these are few, and the latest is near the end.
    return OperatorAction.objects.filter(action=action, outcome="done").order_by("-id").first()


def _freshness() -> Any:
    rows = VectorSearchStats.objects.values("embedding_model").annotate(
        documents=Sum("documents"), missing=Sum("missing"), stale=Sum("stale")
    )
    return list(rows.filter(~Q(embedding_model=None)).order_by("embedding_model"))


def _kept(name: str, look: Any) -> Any:
    """What was found in the last minutes, or what is found now."""
    return cache.get_or_set(f"cartrita_search:dashboard:{name}", look, HEALTH_SECONDS)
