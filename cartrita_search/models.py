"""The tables as Django sees them.

The SQL files make the tables, with their constraints and triggers, because
clients without Django rely on them too; hence ``managed = False`` throughout. A
test compares each model with the catalog.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.search import SearchVectorField
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from django.core.validators import MaxLengthValidator, MaxValueValidator, MinValueValidator
from django.db import connection, models
from django.db.models.functions import Now, Random
from pgvector.django import SparseVectorField, VectorField

#: Tolerance of the sum of two weights; the database's CHECK has the same.
WEIGHT_SUM_TOLERANCE = 1e-6

#: Up to so many dimensions pgvector indexes each storage; bit takes all there can be.
INDEXED_DIMENSIONS = {"vector": 2000, "halfvec": 4000}


def validate_unit_interval(value: float) -> None:
    """Refuse what is not in [0, 1]; NaN is in no interval."""
    if not 0 <= value <= 1:
        raise ValidationError("This must be between 0 and 1.")


def validate_target_recall(value: float) -> None:
    """Refuse what is not in (0, 1]: a recall of 0 asks for nothing."""
    if not 0 < value <= 1:
        raise ValidationError("This must be above 0, and at most 1.")


def validate_json_object(value: object) -> None:
    """Refuse JSON that is not an object: a filter by metadata is a containment test."""
    if not isinstance(value, dict):
        raise ValidationError('This must be a JSON object, like {"key": "value"}.')


def text_search_languages() -> list[str]:
    """The names of the database's text search configurations, as they are stored."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT oid::regconfig::text FROM pg_ts_config ORDER BY 1")
        return [name for (name,) in cursor.fetchall()]


def validate_language(value: str) -> None:
    """Refuse a name that no text search configuration has."""
    # Only the spelling that the database stores, which the pages' select can show.
    if value not in text_search_languages():
        raise ValidationError(
            "There is no text search configuration “%(value)s”.", params={"value": value}
        )


def _owner(related_name: str, help_text: str = "") -> models.ForeignKey[Any, Any]:
    """The person a row belongs to: a key without a database constraint.

    The table of people may not be Django's, and rows written by other clients
    must not depend on it. Deleting a person through Django deletes their rows.
    """
    return models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        db_constraint=False,
        db_index=False,
        on_delete=models.CASCADE,
        related_name=related_name,
        help_text=help_text,
    )


def owner_name(row: Any) -> str | None:
    """The person whom a row belongs to, or None: it is everybody's.

    A row of another client may name a person whom Django does not know.
    """
    if row.user_id is None:
        return None
    try:
        person = row.user
    except ObjectDoesNotExist:
        person = None
    return str(person) if person else f"user {row.user_id}"


class SchemaMigration(models.Model):
    """One applied migration of this package."""

    version = models.TextField(primary_key=True)
    applied_at = models.DateTimeField(db_default=Now())
    checksum = models.TextField()
    description = models.TextField()
    migration_type = models.TextField(db_default="schema")

    class Meta:
        managed = False
        db_table = "schema_migrations"
        ordering = ("applied_at",)

    def __str__(self) -> str:
        return self.version


def validate_positive(value: float) -> None:
    """Above 0: a share."""
    if not value > 0:
        raise ValidationError("This must be above 0.")


class SearchSettings(models.Model):
    """The one row of thresholds and budgets that every client shares."""

    id = models.IntegerField(primary_key=True, default=1, editable=False)
    default_language = models.TextField(
        default="english",
        validators=[validate_language],
        help_text="Text search configuration of documents and queries that name none.",
    )
    candidate_pool = models.IntegerField(
        default=100,
        validators=[MinValueValidator(10), MaxValueValidator(10_000)],
        help_text="Candidates that each leg of a hybrid search proposes, at least.",
    )
    keyword_candidate_budget = models.IntegerField(
        default=2500,
        validators=[MinValueValidator(100), MaxValueValidator(10_000_000)],
        help_text="Sum of document frequencies up to which a query's words, rarest first, "
        "propose candidates.",
    )
    keyword_max_terms = models.IntegerField(
        default=128,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="Words of a query that count, rarest first.",
    )
    rrf_k = models.IntegerField(
        "RRF constant k",
        default=60,
        validators=[MinValueValidator(1), MaxValueValidator(10_000)],
        help_text="Reciprocal rank fusion scores 1 / (k + rank).",
    )
    exact_scan_max_rows = models.IntegerField(
        default=1000,
        validators=[MinValueValidator(0)],
        help_text="Up to this many vectors of a model no index is built.",
    )
    index_memory_budget_mb = models.IntegerField(
        "index memory budget (MiB)",
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Memory for building an HNSW graph; empty means maintenance_work_mem.",
    )
    hnsw_m = models.IntegerField(
        "HNSW m", default=16, validators=[MinValueValidator(2), MaxValueValidator(100)]
    )
    hnsw_ef_construction = models.IntegerField(
        "HNSW ef_construction",
        default=64,
        validators=[MinValueValidator(4), MaxValueValidator(1000)],
        help_text="At least twice m.",
    )
    rebuild_growth = models.FloatField(
        default=0.3,
        validators=[validate_positive],
        help_text="An index is due when a model has this share of vectors more, or fewer.",
    )
    rebuild_dead_share = models.FloatField(
        "rebuild dead share",
        default=0.2,
        validators=[validate_positive, MaxValueValidator(1)],
        help_text="An index is due when this share of the rows of embeddings is dead.",
    )

    class Meta:
        managed = False
        db_table = "search_settings"
        verbose_name = verbose_name_plural = "search settings"

    def __str__(self) -> str:
        return "Search settings"

    def clean(self) -> None:
        super().clean()
        # What is no number was refused with its own field; that error says enough.
        numbers = (self.hnsw_ef_construction, self.hnsw_m)
        if all(isinstance(n, int) for n in numbers) and numbers[0] < 2 * numbers[1]:
            raise ValidationError({"hnsw_ef_construction": "This must be at least twice m."})


class EmbeddingModel(models.Model):
    """An embedding model, and the vector index in place for it."""

    class IndexMethod(models.TextChoices):
        EXACT = "exact", "exact scan"
        HNSW = "hnsw", "HNSW"
        IVFFLAT = "ivfflat", "IVFFlat"

    class IndexStorage(models.TextChoices):
        VECTOR = "vector", "vector (32 bits)"
        HALFVEC = "halfvec", "halfvec (16 bits)"
        BIT = "bit", "bit (binary quantization)"

    name = models.TextField(primary_key=True)
    dimensions = models.IntegerField()
    is_default = models.BooleanField(
        "default", default=False, help_text="The model that a search naming none is answered by."
    )
    index_method = models.TextField(choices=IndexMethod, default=IndexMethod.EXACT)
    index_storage = models.TextField(choices=IndexStorage, default=IndexStorage.VECTOR)
    preferred_storage = models.TextField(
        choices=[("auto", "as planned"), *IndexStorage.choices],
        default="auto",
        help_text="What the next index stores. vector goes up to 2,000 dimensions, halfvec up to "
        "4,000.",
    )
    hnsw_m = models.IntegerField(null=True, blank=True)
    hnsw_ef_construction = models.IntegerField(null=True, blank=True)
    ivfflat_lists = models.IntegerField(null=True, blank=True)
    ef_search = models.IntegerField(null=True, blank=True)
    probes = models.IntegerField(null=True, blank=True)
    target_recall = models.FloatField(
        default=0.95,
        validators=[validate_target_recall],
        help_text="Recall@10, against the exact scan, that a rebuilt index is tuned to.",
    )
    measured_recall = models.FloatField(null=True, blank=True)
    indexed_rows = models.BigIntegerField(null=True, blank=True)
    indexed_at = models.DateTimeField(null=True, blank=True)
    indexed_by = models.TextField(null=True, blank=True)  # noqa: DJ001 - NULL: by nobody yet
    visible_segment = models.IntegerField(default=0, editable=False)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        managed = False
        db_table = "embedding_models"
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        super().clean()
        most = INDEXED_DIMENSIONS.get(self.preferred_storage)
        if most is not None and self.dimensions > most:
            raise ValidationError(
                {
                    "preferred_storage": f"{self.preferred_storage} indexes up to {most} "
                    f"dimensions; {self.name} has {self.dimensions}. Choose "
                    f"{'halfvec, ' if self.dimensions <= INDEXED_DIMENSIONS['halfvec'] else ''}"
                    "bit or auto."
                }
            )


class SearchDocument(models.Model):
    """One chunk of one row of a source table."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source_table = models.TextField(validators=[MaxLengthValidator(128)])
    source_id = models.TextField(validators=[MaxLengthValidator(500)])
    chunk_index = models.IntegerField(default=0, validators=[MinValueValidator(0)])
    user = _owner("search_documents", help_text="The owner. Empty: shared with everybody.")
    title = models.TextField(blank=True, default="")
    content = models.TextField(blank=True, default="")
    tags = ArrayField(models.TextField(), default=list, blank=True)
    language = models.TextField(default="english", validators=[validate_language])
    metadata = models.JSONField(default=dict, blank=True, validators=[validate_json_object])
    # NULL asks the trigger to compute it.
    content_hash = models.TextField(db_default=models.Value(None), editable=False)
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())
    search_vector = SearchVectorField(null=True, editable=False)
    keyword_vector = SparseVectorField(dimensions=268_435_456, null=True, editable=False)

    class Meta:
        managed = False
        db_table = "search_documents"
        constraints = (
            models.UniqueConstraint(
                fields=["source_table", "source_id", "chunk_index"],
                name="search_documents_source_key",
            ),
        )

    def __str__(self) -> str:
        return self.title or f"{self.source_table}/{self.source_id}#{self.chunk_index}"


class Embedding(models.Model):
    """One vector of one document under one model."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    # The database cascades by itself, without Django reading the vectors first.
    document = models.ForeignKey(
        SearchDocument, on_delete=models.DO_NOTHING, related_name="embeddings"
    )
    source_table = models.TextField()
    source_id = models.TextField()
    chunk_index = models.IntegerField(default=0)
    # DO_NOTHING: the vectors go with their documents, which the person owns.
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        db_constraint=False,
        db_index=False,
        on_delete=models.DO_NOTHING,
        related_name="+",
    )
    embedding_model = models.ForeignKey(
        EmbeddingModel,
        on_delete=models.PROTECT,
        db_column="embedding_model",
        related_name="embeddings",
    )
    embedding = VectorField()
    # NULL asks the trigger to take the document's.
    content_hash = models.TextField(db_default=models.Value(None), editable=False)
    metadata = models.JSONField(default=dict, blank=True)
    segment = models.IntegerField(default=0, editable=False)
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        managed = False
        db_table = "embeddings"

    def __str__(self) -> str:
        return (
            f"{self.source_table}/{self.source_id}#{self.chunk_index} ({self.embedding_model_id})"
        )


class EmbeddingRefusal(models.Model):
    """A document whose present text, or an earlier one, a model's provider refused."""

    # DO_NOTHING, twice: the database cascades by itself.
    document = models.ForeignKey(
        SearchDocument, on_delete=models.DO_NOTHING, related_name="embedding_refusals"
    )
    embedding_model = models.ForeignKey(
        EmbeddingModel,
        on_delete=models.DO_NOTHING,
        db_column="embedding_model",
        related_name="refusals",
    )
    content_hash = models.TextField()
    error_code = models.TextField()
    message = models.TextField()
    worker = models.TextField(help_text="The process that asked: host and process id.")
    refused_at = models.DateTimeField(db_default=Now())

    class Meta:
        managed = False
        db_table = "embedding_refusals"
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.document} ({self.embedding_model_id}): {self.error_code}"


class VectorSearchStats(models.Model):
    """A row of the view: how complete and fresh a model's vectors of a source are."""

    id = models.TextField(primary_key=True)
    source_table = models.TextField()
    embedding_model = models.TextField(null=True)  # noqa: DJ001 - a view's outer join
    dimensions = models.IntegerField(null=True)
    documents = models.BigIntegerField()
    embeddings = models.BigIntegerField()
    missing = models.BigIntegerField()
    stale = models.BigIntegerField()
    oldest = models.DateTimeField(null=True)
    newest = models.DateTimeField(null=True)

    class Meta:
        managed = False
        db_table = "vector_search_stats"
        ordering = ("source_table", "embedding_model")
        verbose_name_plural = "vector search statistics"

    def __str__(self) -> str:
        return self.id


class KeywordCorpus(models.Model):
    """Size and mean document length of one language's corpus."""

    language = models.TextField(primary_key=True)
    documents = models.BigIntegerField()
    average_length = models.FloatField()
    refreshed_at = models.DateTimeField(db_default=Now())

    class Meta:
        managed = False
        db_table = "keyword_corpora"
        verbose_name_plural = "keyword corpora"

    def __str__(self) -> str:
        return self.language


class KeywordStatistic(models.Model):
    """Document frequency of one lexeme in one language's corpus."""

    pk = models.CompositePrimaryKey("language", "lexeme")
    language = models.TextField()
    lexeme = models.TextField()
    document_frequency = models.BigIntegerField()

    class Meta:
        managed = False
        db_table = "keyword_statistics"

    def __str__(self) -> str:
        return f"{self.lexeme} ({self.language})"


class RetrievalConfig(models.Model):
    """Search weights and options of one person, or of the site (no user)."""

    user = _owner(
        "retrieval_configs",
        help_text="Empty: the site's default, for everybody without a row of their own.",
    )
    config_name = models.TextField("name", default="default")
    vector_weight = models.FloatField(
        default=0.7,
        validators=[validate_unit_interval],
        help_text="Share of meaning (cosine similarity), from 0 to 1.",
    )
    keyword_weight = models.FloatField(
        default=0.3,
        validators=[validate_unit_interval],
        help_text="Share of words (BM25), from 0 to 1. The two weights sum to 1.",
    )
    rerank_enabled = models.BooleanField(default=False)
    max_results = models.IntegerField(
        default=10, validators=[MinValueValidator(1), MaxValueValidator(1000)]
    )
    similarity_threshold = models.FloatField(
        default=0.0,
        validators=[validate_unit_interval],
        help_text="Documents whose cosine similarity is lower are found by their words only.",
    )
    is_active = models.BooleanField(
        "active", default=True, help_text="One row of a person (or of the site) is active."
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        managed = False
        db_table = "retrieval_configs"
        constraints = (
            models.UniqueConstraint(
                fields=["user"],
                condition=models.Q(is_active=True),
                nulls_distinct=False,
                name="retrieval_configs_one_active",
                violation_error_message="There is an active configuration for this person "
                "(or for the site) already: make that one inactive first.",
            ),
        )

    def __str__(self) -> str:
        whose = owner_name(self) or "site default"
        return f"{whose}: {self.vector_weight:g} / {self.keyword_weight:g}"

    def clean(self) -> None:
        super().clean()
        # What is no number was refused with its own field; that error says enough.
        weights = (self.vector_weight, self.keyword_weight)
        if not all(isinstance(weight, (int, float)) for weight in weights):
            return
        if abs(sum(weights) - 1) > WEIGHT_SUM_TOLERANCE:
            raise ValidationError(
                f"The weights must sum to 1; {weights[0]:g} and {weights[1]:g} "
                f"sum to {sum(weights):g}."
            )

    def validate_constraints(self, exclude: Collection[str] | None = None) -> None:
        # A form that does not show the person must keep to the rule all the same.
        super().validate_constraints(exclude=set(exclude or ()) - {"user"})


class SearchPerformanceMetric(models.Model):
    """One search: how long it took and what it found."""

    class SearchType(models.TextChoices):
        VECTOR = "vector"
        KEYWORD = "keyword"
        HYBRID = "hybrid"

    user = _owner("search_performance_metrics")
    search_type = models.TextField(choices=SearchType)
    query_text = models.TextField(null=True)  # noqa: DJ001 - NULL means "not kept"
    query_hash = models.TextField(null=True)  # noqa: DJ001
    result_count = models.IntegerField()
    execution_time_ms = models.FloatField()
    cache_hit = models.BooleanField(default=False)
    created_at = models.DateTimeField(db_default=Now())
    metadata = models.JSONField(default=dict)

    class Meta:
        managed = False
        db_table = "search_performance_metrics"
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.search_type}, {self.execution_time_ms:.1f} ms"


class CacheInvalidation(models.Model):
    """One invalidation of cached search results."""

    cache_key = models.TextField(null=True)  # noqa: DJ001 - a key or a namespace
    cache_namespace = models.TextField(null=True)  # noqa: DJ001
    invalidation_reason = models.TextField()
    invalidated_by = models.TextField(
        db_default=models.Func(
            function="CURRENT_USER", template="%(function)s", output_field=models.TextField()
        )
    )
    created_at = models.DateTimeField(db_default=Now())
    metadata = models.JSONField(default=dict)

    class Meta:
        managed = False
        db_table = "cache_invalidation_log"
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.cache_key or self.cache_namespace}: {self.invalidation_reason}"


class SearchGeneration(models.Model):
    """One stamp of what cached results were made from: see ``sql/cache/``."""

    namespace = models.TextField()
    slot = models.SmallIntegerField()
    revision = models.BigAutoField(primary_key=True)
    stamp = models.FloatField(db_default=Random())

    class Meta:
        managed = False
        db_table = "search_generations"
        ordering = ("-revision",)

    def __str__(self) -> str:
        return f"{self.namespace} {self.slot}: {self.revision}"


class RedisSession(models.Model):
    """The registry row of one session or other entry that lives in Redis."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    session_key_hash = models.TextField()
    user = _owner("redis_sessions")
    data_type = models.TextField(default="session")
    ttl_seconds = models.IntegerField()
    created_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()
    revoked_at = models.DateTimeField(null=True)
    metadata = models.JSONField(default=dict)

    class Meta:
        managed = False
        db_table = "redis_sessions"
        ordering = ("-created_at",)
        permissions = (("revoke_redissession", "Can revoke sessions and other entries"),)

    def __str__(self) -> str:
        return f"{self.data_type} {self.session_key_hash[:12]}"


class SourceCheckpoint(models.Model):
    """How far an unfinished run of ``sync_documents`` or ``import_v1`` has come in one source."""

    source_table = models.TextField(primary_key=True)
    last_key = models.TextField(null=True)  # noqa: DJ001 - NULL before the first batch
    rows = models.BigIntegerField(default=0)
    started_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        managed = False
        db_table = "source_checkpoints"
        ordering = ("source_table",)

    def __str__(self) -> str:
        return f"{self.source_table}: {self.rows} rows"


class OperatorAction(models.Model):
    """What one operator's command did to the database."""

    action = models.TextField()
    subject = models.TextField(default="")
    outcome = models.TextField(default="done")
    reason = models.TextField(default="")
    role = models.TextField(
        db_default=models.Func(
            function="CURRENT_USER", template="%(function)s", output_field=models.TextField()
        )
    )
    operator = models.TextField(default="")
    occurred_at = models.DateTimeField(db_default=Now())
    details = models.JSONField(default=dict)

    class Meta:
        managed = False
        db_table = "operator_actions"
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.action} {self.subject}".strip()


class SearchJudgement(models.Model):
    """How relevant one document is to one question, as staff see it."""

    user = _owner("search_judgements", help_text="Whose question it is. Empty: anybody's.")
    query_text = models.TextField("question")
    source_table = models.TextField()
    source_id = models.TextField()
    chunk_index = models.IntegerField(null=True, blank=True)
    grade = models.IntegerField()
    judged_by = models.TextField(default="")
    judged_at = models.DateTimeField(db_default=Now())

    class Meta:
        managed = False
        db_table = "search_judgements"
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.query_text}: {self.source_table}/{self.source_id}, grade {self.grade}"
