"""Search weights and options: everybody's, and the site's default."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.contrib.admin.widgets import AdminTextInputWidget
from django.contrib.auth import get_user_model
from django.db import IntegrityError, connection, models
from django.db.models import F, Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path
from django.utils.html import format_html, format_html_join
from django.utils.timezone import localtime

from ..models import RetrievalConfig
from . import config_actions, preview, weight_curve
from .base import AnyModelAdmin, FilledInByDatabase, ModelForm, Owned
from .changes import before_form, differences, last_changes

USERNAME = f"user__{get_user_model().USERNAME_FIELD}"

#: Name and vector weight of each preset beside the site's own.
PRESETS = (("Balanced", 0.5), ("Semantic", 0.8), ("Keyword", 0.2))

#: Where neither the site nor a person says otherwise; as in hybrid_search.
DEFAULT_VECTOR_WEIGHT = 0.7


def site_default() -> RetrievalConfig:
    """The site's active configuration; where there is none, one with the defaults of all."""
    found = RetrievalConfig.objects.filter(user=None, is_active=True).first()
    return found or RetrievalConfig()


def proposed_weight(request: HttpRequest) -> float | None:
    """A vector weight in the page's address, as the links to presets write it."""
    try:
        weight = float(request.GET["vector_weight"])
    except (KeyError, ValueError):
        return None
    return weight if 0 <= weight <= 1 else None


def keyword_weight(vector_weight: float) -> float:
    """What is left to 1, without what binary fractions leave behind."""
    return round(1 - vector_weight, 9)


class RetrievalConfigForm(ModelForm):
    """Weights that are linked, and what each option does."""

    class Meta:
        help_texts = {  # noqa: RUF012 - as Django declares it
            "config_name": "For staff alone: why it is as it is.",
            "is_active": "One row of a person (or of the site) is active: the database holds it. "
            "Inactive ones are kept for later.",
            "max_results": "Results of a search that does not say how many, 1 to 1000.",
            "rerank_enabled": "The best candidates are scored anew by the configured reranker: "
            "often better, always slower.",
        }
        widgets = {"config_name": AdminTextInputWidget}  # noqa: RUF012


class WithSearches(ChangeList):
    """The rows of a page with who changed each, and what it has answered in seven days."""

    result_list: Any

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        changes, searches = last_changes(self.result_list), _searches()
        for config in self.result_list:
            config.last_change = changes.get(config.pk)
            config.searches = searches.get(config.user_id, (0, 0)) if config.is_active else None


def _searches() -> dict[int | None, tuple[int, int]]:
    """Searches of the last seven days by the person whose configuration counted, and those
    of them that found nothing; under None those that the site's default answered.
    """
    with connection.cursor() as cursor:
        # The index on the time leaves what is older unread.
        cursor.execute(
            """
            SELECT c.user_id, sum(m.searches), sum(m.zero_hits)
            FROM (
                SELECT user_id, count(*) AS searches,
                    count(*) FILTER (WHERE result_count = 0) AS zero_hits
                FROM search_performance_metrics
                WHERE created_at >= now() - interval '7 days'
                GROUP BY user_id
            ) AS m
            LEFT JOIN retrieval_configs AS c ON c.user_id = m.user_id AND c.is_active
            GROUP BY c.user_id
            """
        )
        return {user: (int(searches), int(zero)) for user, searches, zero in cursor.fetchall()}


def weights_bar(config: RetrievalConfig) -> str:
    """Both weights as a bar, with the figures beside it."""
    return format_html(
        '<span class="cs-weights"><svg class="cs-bar" width="80" height="10" viewBox="0 0 80 10" '
        'aria-hidden="true" focusable="false"><rect class="cs-vector" width="{}" height="10"/>'
        '<rect class="cs-keyword" x="{}" width="{}" height="10"/></svg> {} / {}</span>',
        f"{80 * config.vector_weight:.1f}",
        f"{80 * config.vector_weight:.1f}",
        f"{80 * config.keyword_weight:.1f}",
        f"{config.vector_weight:.4g}",
        f"{config.keyword_weight:.4g}",
    )


class OneActive(AnyModelAdmin):
    """A page that may make a configuration active, at the same time as another one does."""

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except IntegrityError as error:
            constraint = getattr(getattr(error.__cause__, "diag", None), "constraint_name", None)
            if constraint != "retrieval_configs_one_active":
                raise
            # Somebody else was faster, after the form had looked.
            self.message_user(
                request,
                "Nothing was saved: another configuration of this person (or of the site) has "
                "just become active, and only one may be. Look at it, and try again.",
                messages.ERROR,
            )
            return HttpResponseRedirect(request.get_full_path())


@admin.register(RetrievalConfig)
class RetrievalConfigAdmin(OneActive, FilledInByDatabase, Owned):
    """One row a person is active, and one for the site."""

    form = RetrievalConfigForm
    change_form_template = "admin/cartrita_search/retrievalconfig/change_form.html"
    list_display = (
        "owner",
        "config_name",
        "weights",
        "is_active",
        "changed",
        "searches",
        "zero_hits",
    )
    list_filter = ("is_active", ("user", admin.EmptyFieldListFilter), "rerank_enabled")
    search_fields = (USERNAME, "config_name")
    search_help_text = "By person, or by name of the configuration."
    # The site's own first.
    ordering = (F(USERNAME).asc(nulls_first=True), "-is_active", "id")
    autocomplete_fields = ("user",)
    readonly_fields = ("presets", "created_at", "updated_at")
    actions = ("activate", "reset_to_site_default", "copy_to_users")
    fieldsets = (
        (None, {"fields": ("user", "config_name", "is_active")}),
        ("Weights", {"fields": ("vector_weight", "keyword_weight", "presets")}),
        ("Results", {"fields": ("max_results", "similarity_threshold", "rerank_enabled")}),
        (None, {"fields": (("created_at", "updated_at"),)}),
    )
    formfield_overrides = {  # noqa: RUF012 - as Django declares it
        # The sliders' range too.
        models.FloatField: {"min_value": 0, "max_value": 1},
    }

    class Media:
        js = ("cartrita_search/weights.js",)

    def get_urls(self) -> list[URLPattern]:
        wrap, name = self.admin_site.admin_view, "cartrita_search_retrievalconfig"
        return [
            path("<path:object_id>/preview/", wrap(self.preview_view), name=f"{name}_preview"),
            path("<path:object_id>/curve/", wrap(self.curve_view), name=f"{name}_curve"),
            *super().get_urls(),
        ]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return WithSearches

    # --- The list -----------------------------------------------------------

    @admin.display(description="person", ordering=USERNAME, empty_value="site default")
    def owner(self, row: Model) -> str | None:
        return super().owner(row)

    @admin.display(description="meaning / words", ordering="vector_weight")
    def weights(self, config: RetrievalConfig) -> str:
        return weights_bar(config)

    @admin.display(description="last changed", ordering="updated_at")
    def changed(self, config: Any) -> str:
        """When, and by whom if that was in the admin."""
        when = f"{localtime(config.updated_at):%Y-%m-%d %H:%M}"
        who, logged = config.last_change or ("", None)
        # The admin writes its log after the row.
        return f"{when} by {who}" if logged and logged >= config.updated_at else when

    @admin.display(description="searches, 7 days")
    def searches(self, config: Any) -> str | None:
        return f"{config.searches[0]:,}" if config.searches else None

    @admin.display(description="without a hit")
    def zero_hits(self, config: Any) -> str | None:
        searches, without = config.searches or (0, 0)
        return f"{without / searches:.1%}" if searches else None

    # --- The form -----------------------------------------------------------

    @admin.display(description="presets")
    def presets(self, config: RetrievalConfig) -> str:
        """Links that fill the weights in; saving is another step."""
        choices = [*PRESETS, ("Site default", site_default().vector_weight)]
        return format_html_join(
            " ",
            '<a class="button cs-preset" data-vector-weight="{0}" '
            'href="?vector_weight={0}&amp;keyword_weight={1}">{2} {3}</a>',
            [
                (weight, keyword_weight(weight), name, f"{weight:g} / {keyword_weight(weight):g}")
                for name, weight in choices
            ],
        )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None or self.has_change_permission(request, obj):
            return fieldsets
        # Nothing can be filled in.
        return [
            (name, {**options, "fields": [f for f in options["fields"] if f != "presets"]})
            for name, options in fieldsets
        ]

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        config = super().get_object(request, object_id, from_field)
        weight = proposed_weight(request)
        page = request.resolver_match and request.resolver_match.url_name
        if (
            config
            and weight is not None
            and request.method == "GET"
            and page == "cartrita_search_retrievalconfig_change"
            and self.has_change_permission(request, config)
        ):
            config.vector_weight, config.keyword_weight = weight, keyword_weight(weight)
            self.message_user(
                request, "These weights are a proposal: save them to use them.", messages.INFO
            )
        return config

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if "vector_weight" in request.GET:
            # A save would lead back to this address, and propose the same anew.
            form_url = form_url or request.path
        return super().changeform_view(request, object_id, form_url, extra_context)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        config = kwargs.get("obj")
        if config is not None and self.has_view_permission(request, config):
            context |= preview.start(request, config)
        return super().render_change_form(request, context, *args, **kwargs)

    def construct_change_message(
        self, request: HttpRequest, form: Any, formsets: Any, add: bool = False
    ) -> Any:
        if add or not form.changed_data:
            return super().construct_change_message(request, form, formsets, add)
        changed = differences(before_form(form), form.instance, form.changed_data)
        return [{"changed": {"fields": changed}}]

    def preview_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """What the edited weights would find, beside what the saved ones find."""
        return preview.view(self, request, object_id)

    def curve_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """How good each weight is, by what was judged."""
        return weight_curve.view(self, request, object_id)

    # --- Actions ------------------------------------------------------------

    def has_copy_permission(self, request: HttpRequest) -> bool:
        """Copying makes new rows, and changes those that are there."""
        return self.has_add_permission(request) and self.has_change_permission(request)

    @admin.action(description="Activate the selected ones", permissions=["change"])
    def activate(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return config_actions.activate(self, request, queryset)

    @admin.action(description="Reset to the site's default", permissions=["change"])
    def reset_to_site_default(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return config_actions.reset(self, request, queryset, site_default())

    @admin.action(description="Copy to other people", permissions=["copy"])
    def copy_to_users(self, request: HttpRequest, queryset: Any) -> HttpResponse | None:
        return config_actions.copy_to_users(self, request, queryset)
