"""nDCG over weights, by what was judged, beside the weights that a configuration has."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from django.contrib import messages
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.db.models import Count, Max
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString

from .. import judging
from ..errors import InvalidArgument, SearchError
from ..models import RetrievalConfig, SearchJudgement
from . import charts
from .preview import NOBODY

#: The latest judged questions; each takes some six searches.
MOST_QUESTIONS = 200
#: How long a curve is kept (it is found again only for the same judgements and weights),
#: and how long at most one is being drawn.
KEPT_SECONDS = 7 * 24 * 3600
BUSY_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Curve:
    """A sweep over weights, ready to be shown."""

    measure: str
    queries: int
    #: Vector weight, mean, and the bounds of its 95 % interval against the present one.
    points: list[tuple[float, float, float, float]]
    present: float
    best: float
    significant: bool
    verdict: str

    @property
    def chart(self) -> SafeString:
        """The mean, its bounds, and both weights marked."""
        means = {point[0]: point[1] for point in self.points}
        return charts.curve(
            {
                "95 %, low": [(point[0], point[2]) for point in self.points],
                "95 %, high": [(point[0], point[3]) for point in self.points],
                f"mean {self.measure}": list(means.items()),
                "present": [(self.present, means[self.present])],
                "best": [(self.best, means[self.best])],
            },
            marks=("present", "best"),
        )


def view(model_admin: Any, request: HttpRequest, object_id: str) -> HttpResponse:
    """The curve that is kept; POST draws it anew."""
    config = model_admin.get_object(request, object_id)
    allowed = model_admin.has_view_permission(request, config)
    if not allowed or not request.user.has_perm("cartrita_search.view_searchjudgement"):
        raise PermissionDenied
    if config is None:
        missing: HttpResponse = model_admin._get_obj_does_not_exist_redirect(
            request, model_admin.opts, object_id
        )
        return missing
    key = _key(config)
    curve: Curve | None = cache.get(key)
    if request.method == "POST":
        curve = _draw(request, config, key)
        # Otherwise shown at once: a cache that is gone, or another process's, has it not.
        if curve is None:
            return HttpResponseRedirect(request.path)
    context = model_admin.admin_site.each_context(request) | {
        "title": f"Weight curve: {config}",
        "opts": model_admin.opts,
        "original": config,
        "media": model_admin.media,
        "judged": _judged(config).values("query_text", "user").distinct().count(),
        "most": MOST_QUESTIONS,
        "curve": curve,
        "has_change_permission": model_admin.has_change_permission(request, config),
    }
    page = "admin/cartrita_search/retrievalconfig/curve.html"
    return TemplateResponse(request, page, context)


def _judged(config: RetrievalConfig) -> Any:
    """The person's judgements; of the site's configuration those of all."""
    rows = SearchJudgement.objects.order_by()
    return rows if config.user_id is None else rows.filter(user=config.user_id)


def _key(config: RetrievalConfig) -> str:
    state = _judged(config).aggregate(Count("id"), Max("id"), Max("judged_at"))
    parts = [config.user_id, config.vector_weight, *state.values()]
    return "cartrita_search:curve:" + ":".join(str(part).replace(" ", "T") for part in parts)


def _draw(request: HttpRequest, config: RetrievalConfig, key: str) -> Curve | None:
    busy = f"cartrita_search:curve-busy:{config.pk}"
    # A cache that is gone adds nothing and has nothing.
    if not cache.add(busy, 1, BUSY_SECONDS) and cache.get(busy):
        messages.info(request, "It is being drawn. Look again in a minute.")
        return None
    try:
        curve = _curve(config)
    except SearchError as error:
        messages.error(request, str(error))
        return None
    finally:
        cache.delete(busy)
    cache.set(key, curve, KEPT_SECONDS)
    return curve


def _curve(config: RetrievalConfig) -> Curve:
    """Put the judged questions to the search under every weight.

    Raises a `SearchError`: among them `PackageMissing` and `EmbedderUnavailable`.
    """
    from .. import evaluation
    from ..evaluation.weights import DECIDING

    everybody = config.user_id is None
    asked = judging.questions(config.user_id, everybody=everybody)
    queries = [
        evaluation.JudgedQuery(
            text,
            {evaluation.Key(*key): grade for key, grade in grades.items()},
            NOBODY if user is None else user,
        )
        for (text, user), grades in list(asked.items())[-MOST_QUESTIONS:]
        if any(grades.values())
    ]
    if len(queries) < 2:
        raise InvalidArgument(
            "A curve needs two questions at least with a relevant document; some fifty tell "
            "weights apart.",
            "Mark results as relevant in the preview, or upload a file of judgements.",
        )
    done = evaluation.evaluate_judgements(
        str(config),
        evaluation.Judgements(queries, {"queries": len(asked) - len(queries), "judgements": 0}),
        weights=(config.vector_weight, config.keyword_weight),
        sweep=True,
        stream=io.StringIO(),
    )
    sweep: Any = done.sweep
    low, high = evaluation.band(sweep)
    means = sweep.curve()
    return Curve(
        DECIDING,
        done.queries,
        [
            (weight, float(means[at]), float(low[at]), float(high[at]))
            for at, weight in enumerate(sweep.weights)
        ],
        sweep.weights[sweep.present],
        sweep.weights[sweep.best],
        sweep.gain.significant,
        sweep.verdict,
    )
