"""What staff judged relevant or not: a list, and files of judgements."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import DEFAULT_DB_ALIAS, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from .. import judging
from ..errors import SearchError, UnreadableInput
from ..models import SearchJudgement
from .base import LargeTable, Owned

MOST_BYTES = 5_000_000


class UploadForm(forms.Form):
    """A file as ``evaluate_search --live`` reads it."""

    file = forms.FileField(help_text="A file .jsonl or .tsv, 5 MB at most.")

    def clean_file(self) -> Any:
        file = self.cleaned_data["file"]
        if file.size > MOST_BYTES:
            raise forms.ValidationError("The file is larger than 5 MB.")
        return file


@admin.register(SearchJudgement)
class SearchJudgementAdmin(Owned, LargeTable):
    """Made beside the results of a preview, or added as a file; here looked at and deleted."""

    list_display = ("query_text", "owner", "source_table", "source_id", "grade", "judged_by")
    list_filter = ("grade", "source_table")
    search_fields = ("query_text", "source_id")
    fields = (
        "user",
        "query_text",
        ("source_table", "source_id", "chunk_index"),
        "grade",
        ("judged_by", "judged_at"),
    )

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Takes a file instead of one judgement."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        form = UploadForm(request.POST or None, request.FILES or None)
        if request.method == "POST" and form.is_valid():
            try:
                count, left_out = _store(form.cleaned_data["file"], request.user.get_username())
            except SearchError as error:
                form.add_error("file", str(error))
            else:
                self.message_user(
                    request,
                    f"Stored: {count} judgements. Left out, of questions without a relevant "
                    f"document or of unknown documents: {left_out}.",
                    messages.SUCCESS,
                )
                listed = reverse("admin:cartrita_search_searchjudgement_changelist")
                return HttpResponseRedirect(listed)
        context = self.admin_site.each_context(request) | {
            "title": "Upload judgements",
            "opts": self.opts,
            "media": self.media,
            "form": form,
        }
        page = "admin/cartrita_search/searchjudgement/upload.html"
        return TemplateResponse(request, page, context)


def _store(file: Any, by: str) -> tuple[int, int]:
    """Store what the file says, all or nothing; how many judgements, how many left out.

    Raises a `SearchError` for a file that cannot be read, naming the line.
    """
    from .. import evaluation

    with TemporaryDirectory() as folder:
        # A request may name a file at greater length than a folder can.
        path = Path(folder) / f"judgements{Path(file.name).suffix[:20]}"
        path.write_bytes(file.read())
        try:
            judged = evaluation.read_judgements(path, DEFAULT_DB_ALIAS)
        except UnreadableInput as error:
            said = error.message.replace(f"{folder}/", "")
            raise UnreadableInput(said, "Nothing was stored.") from error
    for query in judged.queries:
        if not 0 < len(query.text) <= judging.MAX_QUESTION:
            raise UnreadableInput(
                f"A question has {len(query.text)} characters; 1 to {judging.MAX_QUESTION} can "
                "be judged.",
                "Nothing was stored.",
            )
    with transaction.atomic():
        for query in judged.queries:
            for key, grade in query.grades.items():
                judging.judge(query.text, (*key,), max(0, grade), user_id=query.user, by=by)
    return judged.count, sum(judged.left_out.values())
