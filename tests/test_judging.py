"""Judgements as they are stored: one of a question and a document, the last one counts."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, transaction

from cartrita_search import judging
from cartrita_search.models import SearchJudgement

pytestmark = pytest.mark.django_db

ROW, CHUNK = ("notes", "1", None), ("notes", "1", 0)


def test_a_later_judgement_takes_the_place_of_the_earlier() -> None:
    user = User.objects.create_user("ada")
    for user_id in (user.pk, None):
        for key in (ROW, CHUNK):
            judging.judge("car", key, 2, user_id=user_id, by="grace")
            judging.judge("car", key, 0, user_id=user_id, by="alan")
    assert SearchJudgement.objects.count() == 4
    assert judging.judged("car", user.pk) == {ROW: 0, CHUNK: 0}
    assert judging.judged("car", None) == {ROW: 0, CHUNK: 0}
    assert judging.judged("Car", None) == {}
    assert set(SearchJudgement.objects.values_list("judged_by", flat=True)) == {"alan"}


def test_questions_are_one_person_s_nobody_s_or_everybody_s() -> None:
    user = User.objects.create_user("ada")
    judging.judge("hers", ROW, 1, user_id=user.pk, by="grace")
    judging.judge("anybody's", ROW, 3, user_id=None, by="grace")
    assert judging.questions(user.pk) == {("hers", user.pk): {ROW: 1}}
    assert judging.questions(None) == {("anybody's", None): {ROW: 3}}
    assert len(judging.questions(None, everybody=True)) == 2


@pytest.mark.parametrize(
    ("question", "grade"), [("", 1), ("x" * 1001, 1), ("car", -1), ("car", 1001)]
)
def test_the_database_refuses_what_is_no_judgement(question: str, grade: int) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        judging.judge(question, ROW, grade, user_id=None, by="grace")


def test_the_longest_question_and_key_are_stored() -> None:
    key = ("t" * 128, "i" * 500, 7)
    question = "".join(chr(0x4E00 + number) for number in range(judging.MAX_QUESTION))
    judging.judge(question, key, 1, user_id=None, by="grace")
    assert judging.judged(question, None) == {key: 1}
