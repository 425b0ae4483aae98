"""What the models refuse by themselves, and how they name their rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import DatabaseError, IntegrityError, models, transaction
from django.utils import timezone

from cartrita_search.models import (
    CacheInvalidation,
    Embedding,
    EmbeddingModel,
    KeywordCorpus,
    KeywordStatistic,
    RedisSession,
    RetrievalConfig,
    SchemaMigration,
    SearchDocument,
    SearchPerformanceMetric,
    SearchSettings,
    SourceCheckpoint,
    VectorSearchStats,
    owner_name,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


def refused(row: models.Model) -> dict[str, list[str]]:
    """The errors of a row by field; empty if the row may be saved."""
    try:
        row.full_clean()
    except ValidationError as error:
        return error.message_dict
    return {}


# --- RetrievalConfig ----------------------------------------------------------


def test_the_defaults_of_a_config_are_valid_and_those_of_the_table() -> None:
    assert refused(RetrievalConfig()) == {}
    RetrievalConfig().save()
    saved = RetrievalConfig.objects.get()
    assert (saved.vector_weight, saved.keyword_weight) == (0.7, 0.3)
    assert (saved.max_results, saved.similarity_threshold) == (10, 0.0)
    assert saved.is_active
    assert not saved.rerank_enabled


@pytest.mark.parametrize(
    ("weights", "may_be_saved"),
    [
        ((0.0, 1.0), True),
        ((1.0, 0.0), True),
        ((1 / 3, 2 / 3), True),
        ((0.1 + 0.2, 0.7), True),
        ((0.5, 0.5 + 9e-7), True),
        ((0.5, 0.5 + 2e-6), False),
        ((0.5, 0.4), False),
        ((0.0, 0.0), False),
        ((-0.1, 1.1), False),
        ((math.nan, 0.5), False),
        ((math.nan, math.nan), False),
        ((math.inf, 0.0), False),
    ],
)
def test_model_and_database_agree_on_weights(
    weights: tuple[float, float], may_be_saved: bool
) -> None:
    config = RetrievalConfig(vector_weight=weights[0], keyword_weight=weights[1])
    assert (refused(config) == {}) is may_be_saved
    try:
        with transaction.atomic():
            config.save()
    except IntegrityError:
        assert not may_be_saved
    else:
        assert may_be_saved


def test_weights_that_do_not_sum_to_one_are_named_with_their_sum() -> None:
    errors = refused(RetrievalConfig(vector_weight=0.5, keyword_weight=0.4))
    assert errors == {"__all__": ["The weights must sum to 1; 0.5 and 0.4 sum to 0.9."]}


@pytest.mark.parametrize("value", [None, "much"])
def test_a_weight_that_is_no_number_is_one_error_and_no_crash(value: Any) -> None:
    errors = refused(RetrievalConfig(vector_weight=value))
    assert list(errors) == ["vector_weight"]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_model_and_database_agree_on_the_threshold(threshold: float) -> None:
    config = RetrievalConfig(similarity_threshold=threshold)
    assert list(refused(config)) == ["similarity_threshold"]
    with pytest.raises(IntegrityError), transaction.atomic():
        config.save()


def test_of_a_person_and_of_the_site_one_config_is_active(ada: User) -> None:
    for user in (ada, None):
        RetrievalConfig.objects.create(user=user)
        second = RetrievalConfig(user=user)
        assert "make that one inactive first" in refused(second)["__all__"][0]
        with pytest.raises(IntegrityError), transaction.atomic():
            second.save()
        second.is_active = False
        assert refused(second) == {}
        second.save()
        # Nor does the rule depend on the form that shows the row.
        second.is_active = True
        with pytest.raises(ValidationError):
            second.full_clean(exclude=["user"])


def test_an_active_config_may_be_saved_again(ada: User) -> None:
    config = RetrievalConfig.objects.create(user=ada)
    config.max_results = 20
    assert refused(config) == {}


def test_updated_at_moves_and_created_at_stays() -> None:
    config = RetrievalConfig.objects.create()
    first = (config.created_at, config.updated_at)
    config.save()
    config.refresh_from_db()
    assert config.created_at == first[0]
    assert config.updated_at > first[1]


# --- SearchSettings -----------------------------------------------------------


def test_the_settings_that_the_migration_stores_are_valid() -> None:
    assert refused(SearchSettings.objects.get()) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("candidate_pool", 9),
        ("candidate_pool", 10_001),
        ("keyword_candidate_budget", 99),
        ("keyword_candidate_budget", 10_000_001),
        ("keyword_max_terms", 0),
        ("keyword_max_terms", 1001),
        ("rrf_k", 0),
        ("rrf_k", 10_001),
        ("exact_scan_max_rows", -1),
        ("index_memory_budget_mb", 0),
        ("hnsw_m", 1),
        ("hnsw_m", 101),
        ("hnsw_m", 33),
        ("hnsw_ef_construction", 3),
        ("hnsw_ef_construction", 1001),
        ("hnsw_ef_construction", 31),
    ],
)
def test_model_and_database_agree_on_the_settings(field: str, value: int) -> None:
    row = SearchSettings.objects.get()
    setattr(row, field, value)
    # An m too large for its ef_construction is told at the latter.
    assert set(refused(row)) & {field, "hnsw_ef_construction"}
    with pytest.raises(IntegrityError), transaction.atomic():
        row.save()


@pytest.mark.parametrize("field", ["hnsw_m", "hnsw_ef_construction"])
@pytest.mark.parametrize("value", [None, "many"])
def test_a_setting_that_is_no_number_is_one_error_and_no_crash(field: str, value: Any) -> None:
    row = SearchSettings.objects.get()
    setattr(row, field, value)
    assert list(refused(row)) == [field]


def test_there_is_one_row_of_settings() -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        SearchSettings(id=2).save()


# --- Documents and models -----------------------------------------------------


@pytest.mark.parametrize("language", ["klingon", "pg_catalog.english", "English", "a; b"])
def test_a_language_is_the_stored_name_of_a_text_search_configuration(language: str) -> None:
    document = SearchDocument(source_table="books", source_id="1", language=language)
    assert list(refused(document)) == ["language"]
    settings = SearchSettings.objects.get()
    settings.default_language = language
    assert list(refused(settings)) == ["default_language"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source_table", ""),
        ("source_table", "x" * 129),
        ("source_id", ""),
        ("source_id", "x" * 501),
        ("chunk_index", -1),
        ("metadata", "text"),
        ("metadata", ["list", "of", "words"]),
        ("language", "klingon"),
    ],
)
def test_model_and_database_agree_on_a_document(field: str, value: Any) -> None:
    document = SearchDocument(source_table="books", source_id="1")
    assert refused(document) == {}
    setattr(document, field, value)
    assert list(refused(document)) == [field]
    with pytest.raises(DatabaseError), transaction.atomic():
        document.save()


def test_a_source_row_has_a_chunk_once() -> None:
    SearchDocument.objects.create(source_table="books", source_id="1")
    assert refused(SearchDocument(source_table="books", source_id="1", chunk_index=1)) == {}
    twice = SearchDocument(source_table="books", source_id="1")
    assert list(refused(twice)) == ["__all__"]
    with pytest.raises(IntegrityError), transaction.atomic():
        twice.save()


def test_the_trigger_computes_the_hash_that_django_leaves_out() -> None:
    document = SearchDocument.objects.create(
        source_table="books", source_id="1", title="Title", content="Text"
    )
    # SHA-256 of "Title\nText".
    expected = "2c21b2810f4dce981862a2ada3aa1a4a627b6c29a5fdbc536987e04c833ea235"
    assert document.content_hash == expected


@pytest.mark.parametrize("target", [0.0, -0.5, 1.01, math.nan])
def test_model_and_database_agree_on_the_target_recall(target: float) -> None:
    model = EmbeddingModel(name="mini", dimensions=3, target_recall=target)
    assert list(refused(model)) == ["target_recall"]
    with pytest.raises(IntegrityError), transaction.atomic():
        model.save()


# --- Names --------------------------------------------------------------------


def test_rows_are_named_for_people(ada: User) -> None:
    document = SearchDocument(source_table="books", source_id="7", chunk_index=2)
    named: dict[models.Model, str] = {
        RetrievalConfig(pk=1): "site default: 0.7 / 0.3",
        RetrievalConfig(pk=2, user=ada, vector_weight=1, keyword_weight=0): "ada: 1 / 0",
        SearchSettings(pk=1): "Search settings",
        EmbeddingModel(pk="mini", dimensions=3): "mini",
        document: "books/7#2",
        SearchDocument(title="Notes on the Engine"): "Notes on the Engine",
        Embedding(
            source_table="books", source_id="7", chunk_index=2, embedding_model_id="mini"
        ): "books/7#2 (mini)",
        VectorSearchStats(pk="books / mini"): "books / mini",
        KeywordCorpus(pk="english"): "english",
        KeywordStatistic(language="english", lexeme="engin"): "engin (english)",
        SearchPerformanceMetric(
            pk=1, search_type="hybrid", execution_time_ms=12.34
        ): "hybrid, 12.3 ms",
        CacheInvalidation(pk=1, cache_key="k", invalidation_reason="edited"): "k: edited",
        CacheInvalidation(pk=2, cache_namespace="search", invalidation_reason="x"): "search: x",
        RedisSession(session_key_hash="0123456789abcdef", expires_at=timezone.now()): (
            "session 0123456789ab"
        ),
        SourceCheckpoint(pk="books", rows=500): "books: 500 rows",
        SchemaMigration(pk="0001_initial_baseline"): "0001_initial_baseline",
    }
    assert [str(row) for row in named] == list(named.values())


def test_the_owner_of_a_row_may_be_unknown_to_django(ada: User) -> None:
    assert owner_name(SearchDocument()) is None
    assert owner_name(SearchDocument(user=ada)) == "ada"
    config = RetrievalConfig.objects.create(user_id=4711)
    for row in (
        RetrievalConfig.objects.get(pk=config.pk),
        RetrievalConfig.objects.select_related("user").get(pk=config.pk),
    ):
        assert owner_name(row) == "user 4711"
        assert str(row) == "user 4711: 0.7 / 0.3"
