"""Staff's judgements: which documents are relevant to a question.

What they are for is in `evaluation`: the weights under which the judged documents rank
best. This module needs none of its packages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models import Q

from .models import SearchJudgement

#: What a judgement is about: source table, source id, and the chunk (None: the whole row).
Key: TypeAlias = tuple[str, str, int | None]

#: Characters of a question that can be judged.
MAX_QUESTION = 1000


def judge(
    question: str,
    key: Key,
    grade: int,
    *,
    user_id: int | None,
    by: str,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Store a grade (0: not relevant, up to 1000), in place of an earlier one.

    `user_id` is whose question it is; None: anybody's.
    """
    with connections[using].cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO search_judgements
                (user_id, query_text, source_table, source_id, chunk_index, grade, judged_by)
            VALUES (%s, %s, %s, %s, %s, %s, %s)
            ON CONFLICT (user_id, md5(query_text), source_table, source_id, chunk_index)
            DO UPDATE SET grade = excluded.grade, judged_by = excluded.judged_by,
                judged_at = clock_timestamp()
            """,
            [user_id, question, *key, grade, by],
        )


def judged(question: str, user_id: int | None, *, using: str = DEFAULT_DB_ALIAS) -> dict[Key, int]:
    """The grades of that question, by document."""
    return {
        (row.source_table, row.source_id, row.chunk_index): row.grade
        for row in SearchJudgement.objects.using(using).filter(
            Q(user=user_id) if user_id is not None else Q(user=None), query_text=question
        )
    }


def questions(
    user_id: int | None, *, everybody: bool = False, using: str = DEFAULT_DB_ALIAS
) -> Mapping[tuple[str, int | None], dict[Key, int]]:
    """Grades by question and person: of one person (or of nobody in particular), or of all."""
    rows = SearchJudgement.objects.using(using).order_by("id")
    if not everybody:
        rows = rows.filter(user=user_id) if user_id is not None else rows.filter(user=None)
    found: dict[tuple[str, int | None], dict[Key, int]] = {}
    for row in rows:
        key = (row.source_table, row.source_id, row.chunk_index)
        found.setdefault((row.query_text, row.user_id), {})[key] = row.grade
    return found
