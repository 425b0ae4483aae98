"""What a search may ask for besides the best ten: filters that keep little, pages,
explanations, snippets, re-ranking; and that nobody ever sees what is another's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import override_settings
from django.utils.timezone import make_naive
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from psycopg import sql
from psycopg.types.json import Jsonb

from cartrita_search import errors, metrics
from cartrita_search.ingest import Document, upsert_documents
from cartrita_search.models import RetrievalConfig, SearchDocument, SearchPerformanceMetric
from cartrita_search.rerank import Candidate, RerankQuery
from cartrita_search.retrieval import Hit, keyword_search, search, similarity_search
from tests.conftest import Connect
from tests.postgres import scalar, vector_text

MODEL = "synthetic"
WORDS = ("wing", "flutter", "shock", "wave", "heat", "jet", "cone", "plate", "wake", "layer")
FIRST_DAY = datetime(2026, 1, 1, tzinfo=UTC)


def clustered(rows: int, dimensions: int, *, clusters: int, seed: int = 5) -> NDArray[np.float32]:
    """Unit vectors around random centres, so that neighbours mean something."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, dimensions))
    vectors = centres[np.arange(rows) % clusters] + 0.5 * random.normal(size=(rows, dimensions))
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
        np.float32
    )
    return unit


def load(pg: psycopg.Connection, vectors: NDArray[np.float32]) -> None:
    """A document a vector; of each hundred, one passes each of the filters."""
    pg.execute("SELECT register_embedding_model(%s, %s)", [MODEL, vectors.shape[1]])
    with pg.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE given (n integer, embedding vector, content text)")
        with cursor.copy("COPY given FROM STDIN") as copy:
            for n, vector in enumerate(vectors):
                words = f"{WORDS[n % 10]} {WORDS[n // 10 % 10]} {WORDS[n // 100 % 10]}"
                copy.write_row((n, vector_text(vector.tolist()), words))
        cursor.execute(
            """
            WITH stored AS (
                INSERT INTO search_documents (source_table, source_id, user_id, content, metadata,
                    tags, created_at)
                SELECT 'source' || n %% 100, n, 1 + n %% 100, content,
                    jsonb_build_object('bucket', n %% 100),
                    ARRAY['all', 'tag' || n %% 100],
                    %s::timestamptz + n %% 100 * interval '1 day'
                FROM given
                RETURNING id, source_id
            )
            INSERT INTO embeddings (document_id, embedding_model, embedding)
            SELECT s.id, %s, g.embedding
            FROM stored AS s
            JOIN given AS g ON g.n = s.source_id::integer
            """,
            [FIRST_DAY, MODEL],
        )
        cursor.execute("DROP TABLE given")
        cursor.execute("SELECT rebuild_vector_indexes()")
    pg.execute("VACUUM (ANALYZE) search_documents, embeddings")


# --- Filters that keep one row in a hundred ----------------------------------------

ROWS = 100_000
DIMENSIONS = 16
#: SQL's arguments, Python's, and which rows pass.
FILTERS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "owner": ({"user_id_filter": 8}, {"user": 8}, 7),
    "source": ({"source_filter": "source7"}, {"source": "source7"}, 7),
    "sources": (
        {"source_filters": ["source7", "nowhere"]},
        {"source": ["source7", "nowhere"]},
        7,
    ),
    "metadata": ({"metadata_filter": Jsonb({"bucket": 7})}, {"metadata": {"bucket": 7}}, 7),
    "tags": ({"tag_filter": ["all", "tag7"]}, {"tags": ["all", "tag7"]}, 7),
    "created_after": (
        {"created_after": FIRST_DAY + timedelta(days=98.5)},
        {"created_after": FIRST_DAY + timedelta(days=98.5)},
        99,
    ),
}


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return clustered(ROWS + 8, DIMENSIONS, clusters=50)


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
def test_a_filter_that_keeps_one_row_in_a_hundred(
    pg: psycopg.Connection, vectors: NDArray[np.float32]
) -> None:
    """Twenty rows of twenty, and the right ones, by every filter, in SQL and Python."""
    # A sparser graph than the default's is built in a third of the time.
    pg.execute("UPDATE search_settings SET hnsw_m = 8, hnsw_ef_construction = 32")
    load(pg, vectors[:ROWS])
    assert scalar(pg, "SELECT index_method FROM embedding_models") == "hnsw"
    queries = vectors[ROWS:]
    for named, options, passing in FILTERS.values():
        rows = np.arange(passing, ROWS, 100)
        arguments = sql.SQL(", ").join(
            sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name))
            for name in named
        )
        similar = sql.SQL("SELECT source_id FROM similarity_search(%(q)s, match_count => 20, {})")
        hybrid = sql.SQL("SELECT source_id FROM hybrid_search('', %(q)s, match_count => 20, {})")
        recalls = []
        for query in queries:
            nearest = rows[np.argsort(-(vectors[rows] @ query))[:10]]
            answers = [
                [int(key) for (key,) in pg.execute(statement.format(arguments), parameters)]
                for parameters in [{"q": vector_text(query.tolist()), **named}]
                for statement in (similar, hybrid)
            ]
            hits = similarity_search(query.tolist(), model=MODEL, limit=20, **options)
            answers.append([int(hit.source_id) for hit in hits])
            for answer in answers:
                assert len(answer) == 20
                assert set(answer) <= set(rows)
                recalls.append(len(set(answer[:10]) & set(nearest)) / 10)
        assert np.mean(recalls) >= 0.95


@pytest.mark.usefixtures("clean_tables")
def test_a_filter_that_only_the_farthest_rows_pass(pg: psycopg.Connection) -> None:
    """Where the scan of the index gives up, what passes is compared exactly instead."""
    vectors = clustered(3000, 16, clusters=2)
    load(pg, vectors)
    pg.execute("SET hnsw.max_scan_tuples = 100")
    # Rows of odd number are the other cluster's.
    assert scalar(pg, "SELECT index_method FROM embedding_models") == "hnsw"
    for named in ({"metadata_filter": Jsonb({"bucket": 7})}, {"tag_filter": ["tag7"]}):
        (name,) = named
        statement = sql.SQL(
            "SELECT source_id FROM similarity_search(%s, match_count => 20, {} => %s)"
        ).format(sql.Identifier(name))
        found = pg.execute(statement, [vector_text(vectors[0].tolist()), named[name]])
        rows = np.arange(7, 3000, 100)
        nearest = rows[np.argsort(-(vectors[rows] @ vectors[0]), kind="stable")[:20]]
        assert [int(key) for (key,) in found] == nearest.tolist()


# --- Pages ----------------------------------------------------------------------


@pytest.fixture
def indexed(pg: psycopg.Connection, clean_tables: None) -> NDArray[np.float32]:
    """Two thousand documents behind an HNSW index that is not asked for much recall."""
    vectors = clustered(2000, 24, clusters=10)
    load(pg, vectors)
    pg.execute("UPDATE embedding_models SET ef_search = 10")
    return vectors


CALLS = (
    "SELECT id FROM similarity_search(%(q)s, match_count => %(n)s, result_offset => %(o)s)",
    "SELECT id FROM similarity_search(%(q)s, match_count => %(n)s, result_offset => %(o)s,"
    " tag_filter => '{tag7}')",
    "SELECT id FROM hybrid_search('flutter wing', %(q)s, match_count => %(n)s,"
    " result_offset => %(o)s)",
    "SELECT id FROM hybrid_search('flutter wing', %(q)s, match_count => %(n)s,"
    " result_offset => %(o)s, fusion => 'rrf')",
    "SELECT id FROM hybrid_search('flutter -wing', %(q)s, match_count => %(n)s,"
    " result_offset => %(o)s, similarity_threshold => 0.1)",
    "SELECT id FROM hybrid_search('flutter wing', NULL, match_count => %(n)s,"
    " result_offset => %(o)s)",
)


@pytest.mark.parametrize("statement", CALLS)
def test_pages_of_any_length_fit_together(
    pg: psycopg.Connection, indexed: NDArray[np.float32], statement: str
) -> None:
    query = vector_text(indexed[3].tolist())

    def page(count: int, offset: int) -> list[Any]:
        rows = pg.execute(statement, {"q": query, "n": count, "o": offset})
        return [key for (key,) in rows]

    whole = page(500, 0)
    assert len(whole) == len(set(whole)) >= 20
    for length in (7, 10, 64):
        pages = [page(length, offset) for offset in range(0, 500, length)]
        assert [key for keys in pages for key in keys][:500] == whole
    assert page(10, 3000) == []


@pytest.mark.parametrize("function", ["similarity_search", "hybrid_search"])
@pytest.mark.parametrize(
    ("page", "refused"),
    [
        ((10, -1), "result_offset must be between 0"),
        ((10, 9991), "result_offset must be between 0"),
        ((10, None), "result_offset must be between 0"),
        ((10, 2**31 - 1), "result_offset must be between 0"),
        ((2**31 - 1, 1), "match_count must be between 1"),
    ],
)
@pytest.mark.usefixtures("clean_tables")
def test_a_page_is_within_the_first_ten_thousand(
    pg: psycopg.Connection, function: str, page: tuple[int, int | None], refused: str
) -> None:
    pg.execute("SELECT upsert_embedding('notes', '1', '[1, 0]', 'm')")
    arguments = "NULL, '[1, 0]'" if function == "hybrid_search" else "'[1, 0]'"
    statement = sql.SQL("SELECT * FROM {}({}, match_count => %s, result_offset => %s)").format(
        sql.Identifier(function), sql.SQL(arguments)
    )
    with pytest.raises(psycopg.Error, match=refused) as caught:
        pg.execute(statement, page)
    assert caught.value.sqlstate == errors.InvalidMatchCount.code
    assert caught.value.diag.message_hint


# --- Nobody sees another's ------------------------------------------------------

OWNERS = (None, 1, 2, 3)

filters = st.fixed_dictionaries(
    {},
    optional={
        "source_filter": st.sampled_from(["source1", "source2", "nowhere"]),
        "source_filters": st.lists(st.sampled_from(["source1", "source2", "nowhere"])),
        "metadata_filter": st.sampled_from([{}, {"even": True}, {"even": False}]).map(Jsonb),
        "tag_filter": st.lists(st.sampled_from(["a", "b"])),
        "created_after": st.sampled_from([FIRST_DAY - timedelta(1), FIRST_DAY + timedelta(9)]),
        "match_count": st.integers(1, 60),
        "result_offset": st.integers(0, 30),
    },
)
fused = st.fixed_dictionaries(
    {},
    optional={
        "fusion": st.sampled_from(["weighted", "rrf"]),
        "similarity_threshold": st.floats(-1, 1),
        "query_language": st.sampled_from(["english", "simple"]),
    },
)
texts = st.one_of(
    st.none(), st.text(max_size=20), st.lists(st.sampled_from([*WORDS, "-wing"])).map(" ".join)
)
directions = st.integers(0, 399)


@pytest.fixture(params=["exact", "hnsw", "ivfflat"])
def shared_out(
    request: pytest.FixtureRequest, connect: Connect
) -> tuple[psycopg.Connection, NDArray[np.float32], dict[Any, int | None]]:
    """Four hundred documents of three people and everybody, in a transaction rolled back."""
    pg = connect(autocommit=False)
    vectors = clustered(400, 8, clusters=4)
    pg.execute(
        """
        SELECT upsert_embedding('source' || n %% 3, n::text, v::vector, 'm',
            p_content => (%s::text[])[n %% 10 + 1] || ' wing',
            p_user_id => (%s::bigint[])[n %% 4 + 1],
            p_metadata => jsonb_build_object('even', n %% 2 = 0),
            p_tags => CASE WHEN n %% 2 = 0 THEN ARRAY['a', 'b'] ELSE ARRAY['a'] END)
        FROM unnest(%s::text[]) WITH ORDINALITY AS given (v, n)
        """,
        [list(WORDS), list(OWNERS), [vector_text(vector.tolist()) for vector in vectors]],
    )
    pg.execute("UPDATE search_documents SET created_at = %s", [FIRST_DAY])
    if request.param != "exact":
        pg.execute("UPDATE search_settings SET exact_scan_max_rows = 10")
    if request.param == "ivfflat":  # which is for graphs beyond the budget
        pg.execute(
            "UPDATE search_settings "
            "SET index_memory_budget_mb = 1, hnsw_m = 100, hnsw_ef_construction = 200"
        )
    pg.execute("SELECT rebuild_vector_indexes()")
    assert scalar(pg, "SELECT index_method FROM embedding_models") == request.param
    return pg, vectors, dict(pg.execute("SELECT id, user_id FROM search_documents").fetchall())


@hypothesis_settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_nobody_finds_what_is_another_s(
    shared_out: tuple[psycopg.Connection, NDArray[np.float32], dict[Any, int | None]],
    data: st.DataObject,
) -> None:
    """By any function, filter, fusion, weights, page, index."""
    pg, vectors, owners = shared_out
    user = data.draw(st.sampled_from([1, 2, 3, 99]))
    function = data.draw(
        st.sampled_from(["similarity_search", "hybrid_search", "hybrid_search_for_user"])
    )
    named: dict[str, Any] = data.draw(filters)
    vector = vector_text(vectors[data.draw(directions)].tolist())
    if function == "similarity_search":
        named |= {"query_embedding": vector, "user_id_filter": user}
    else:
        text = data.draw(texts.map(lambda t: t and t.replace("\0", "")))
        named |= data.draw(fused) | {"query_text": text}
        if (weight := data.draw(st.sampled_from([None, 0.0, 0.5, 1.0]))) is not None:
            named |= {"vector_weight": weight, "keyword_weight": 1 - weight}
        named["query_embedding"] = (
            vector if text is None else data.draw(st.sampled_from([vector, None]))
        )
        named["p_user_id" if function == "hybrid_search_for_user" else "user_id_filter"] = user
    named = {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in named.items()
    }
    column = "document_id" if function == "similarity_search" else "id"
    arguments = sql.SQL(", ").join(
        sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in named
    )
    statement = sql.SQL("SELECT {} FROM {}({})").format(
        sql.Identifier(column), sql.Identifier(function), arguments
    )
    found = [key for (key,) in pg.execute(statement, named)]

    assert {owners[key] for key in found} <= {None, user}
    assert len(found) == len(set(found)) <= named.get("match_count", 10)
    if function == "similarity_search" and not named.keys() - {
        "query_embedding",
        "user_id_filter",
        "match_count",
        "tag_filter",
    }:
        # Not only nothing of others', but all that is theirs: half of all rows have tag b.
        wanted = named.get("match_count", 10)
        assert len(found) >= min(wanted, 50 if user == 99 else 100)


# --- From Python -------------------------------------------------------------------


@pytest.fixture
def library(db: None) -> User:
    """Documents under a model of two dimensions; one of them is the person's."""
    person = User.objects.create(username="ada")
    report = upsert_documents(
        [
            Document("notes", "flutter", "Flutter", "The flutter of a <b>swept</b> wing.", [1, 0]),
            Document("notes", "flutter-2", "Flutter", "The flutter of a swept wing!", [1, 0.01]),
            Document("notes", "wake", "Wakes", 'Wing & "jet": the wake.', [0.8, 0.6]),
            Document("essays", "heat", "Heat", "Heat at the stagnation point.", [0, 1]),
            Document("essays", "own", "Own", "My own wing.", [0.6, 0.8], user_id=person.pk),
        ],
        model="flat",
    )
    assert report.inserted == 5
    return person


def keys(hits: Sequence[Hit]) -> list[str]:
    return [hit.source_id for hit in hits]


def test_pages_from_python(library: User) -> None:
    whole = search("wing flutter", vector=[1, 0], model="flat")
    pages = [
        search("wing flutter", vector=[1, 0], model="flat", limit=2, offset=o)
        for o in (0, 2, 4, 6)
    ]

    assert [hit for page in pages for hit in page] == whole
    assert len(whole) == 5
    assert (
        keys(similarity_search([1, 0], limit=2, offset=1)) == keys(similarity_search([1, 0]))[1:3]
    )
    assert keyword_search("wing", offset=9999, limit=1) == []


def test_filters_from_python(library: User) -> None:
    assert set(keys(keyword_search("wing heat", source=["essays"]))) == {"heat", "own"}
    assert keyword_search("wing heat", source=[]) == []
    assert keyword_search("wing", tags=["none"]) == []
    hour = timedelta(hours=1)
    stored = SearchDocument.objects.latest("created_at").created_at
    assert len(keyword_search("wing", created_after=stored - hour)) == 4
    assert keyword_search("wing", created_after=stored + hour) == []
    # A naive time is in the current time zone, as everywhere in Django.
    assert len(keyword_search("wing", created_after=make_naive(stored - hour))) == 4


def test_a_text_is_not_a_list_of_tags(library: User) -> None:
    with pytest.raises(errors.InvalidArgument, match="The tags must be a list, not the text"):
        keyword_search("wing", tags="one")


@pytest.mark.parametrize("value", [[None], ["a", None]])
def test_a_list_of_names_holds_no_null(library: User, value: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="holds a NULL"), transaction.atomic():
        keyword_search("wing", tags=value)
    with pytest.raises(errors.InvalidArgument, match="holds a NULL"), transaction.atomic():
        similarity_search([1, 0], source=value)


def test_an_explanation_adds_up(library: User) -> None:
    hits = search("wing flutter", vector=[1, 0], vector_weight=0.6, explain=True)

    for hit in hits:
        why = hit.explanation
        assert why is not None
        assert (why.vector_weight, why.keyword_weight) == pytest.approx((0.6, 0.4))
        assert hit.hybrid_score == pytest.approx(
            why.vector_weight * (hit.vector_similarity or 0)
            + why.keyword_weight * (why.keyword_share or 0)
        )
        assert (why.keyword_rank is None) == (hit.matched_by == "vector")
    ranks = [hit.explanation.vector_rank for hit in hits if hit.explanation]
    assert sorted(rank for rank in ranks if rank) == [1, 2, 3, 4, 5]
    assert {hit.explanation for hit in search("wing", vector=[1, 0])} == {None}
    (alone,) = {
        (hit.explanation.vector_weight, hit.explanation.keyword_weight)
        for hit in keyword_search("wing", explain=True)
        if hit.explanation
    }
    assert alone == (0, 1)


def test_snippets_are_safe_html(library: User) -> None:
    shown = {hit.source_id: hit.snippet for hit in keyword_search("wings, swept", snippets=True)}

    # ts_headline leaves out what looks like a tag, and stop words at the beginning.
    assert shown["flutter"] == "flutter of a  <mark>swept</mark>  <mark>wing</mark>"
    assert shown["wake"] == "<mark>Wing</mark> &amp; &quot;jet&quot;: the wake"
    assert {hit.snippet for hit in keyword_search("wing")} == {None}
    similar = similarity_search([1, 0], snippets=True)  # no words, so nothing to show
    assert {hit.snippet for hit in similar} == {None}


@hypothesis_settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    content=st.text(
        st.one_of(
            st.sampled_from("<>&\"'\x01\x02 wing"), st.characters(exclude_categories=["Cs"])
        ),
        max_size=80,
    ).map(lambda text: text.replace("\0", "")),
    query=st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(
        lambda text: text.replace("\0", "") + " wing"
    ),
)
def test_no_text_escapes_into_the_markup(
    pg: psycopg.Connection, django_db_setup: None, content: str, query: str
) -> None:
    snippet = scalar(pg, "SELECT search_snippet(%s, %s)", [content, query])

    without_marks = re.sub("</?mark>", "", snippet)
    assert not set(without_marks) & set("<>\"'")
    assert snippet.count("<mark>") == snippet.count("</mark>")
    assert "\x01" not in snippet
    assert "\x02" not in snippet


def test_prepared_statements_answer_the_same(library: User) -> None:
    """As with PREPARE_STATEMENTS, which prepares what has been run five times."""
    plain = wanted()
    raw: psycopg.Connection = connection.connection
    raw.prepare_threshold = 0
    try:
        assert [wanted() for _ in range(7)] == [plain] * 7
        prepared = scalar(raw, "SELECT count(*) FROM pg_prepared_statements")
    finally:
        raw.prepare_threshold = None
    assert prepared > 0


# --- Re-ranking ------------------------------------------------------------------


class Backwards:
    """The worst first; notes what it was given."""

    needs_vectors = True
    seen: list[tuple[RerankQuery, list[Candidate]]]

    def __init__(self) -> None:
        type(self).seen = []

    def rerank(self, query: RerankQuery, candidates: Sequence[Candidate]) -> list[float]:
        self.seen.append((query, list(candidates)))
        return [-candidate.score for candidate in candidates]


@pytest.fixture
def reranker(library: User) -> Iterator[type[Backwards]]:
    path = f"{Backwards.__module__}.{Backwards.__name__}"
    with override_settings(
        CARTRITA_SEARCH=settings.CARTRITA_SEARCH
        | {"RERANKER": path, "RERANKER_OPTIONS": {}, "RERANK_DEPTH": 3}
    ):
        yield Backwards


def wanted(**options: Any) -> list[Hit]:
    return search("wing flutter", vector=[1, 0], model="flat", **options)


def test_the_best_candidates_are_re_ranked_when_asked_for(reranker: type[Backwards]) -> None:
    plain = wanted()
    assert {hit.rerank_score for hit in plain} == {None}

    hits = wanted(rerank=True)

    assert keys(hits) == [*keys(plain)[2::-1], *keys(plain)[3:]]
    assert [hit.rerank_score for hit in hits[:3]] == [-hit.hybrid_score for hit in hits[:3]]
    assert {hit.rerank_score for hit in hits[3:]} == {None}
    (query, candidates), *_ = reranker.seen
    assert query == RerankQuery("wing flutter", [1, 0])
    assert [candidate.id for candidate in candidates] == [hit.id for hit in plain[:3]]
    assert candidates[0].vector == pytest.approx([1, 0], abs=0.02)


def test_pages_of_a_re_ranked_search_fit_together(reranker: type[Backwards]) -> None:
    whole = wanted(rerank=True)
    for length in (1, 2, 3):
        pages = [wanted(rerank=True, limit=length, offset=o) for o in range(0, 6, length)]
        assert keys([hit for page in pages for hit in page]) == keys(whole)


def test_a_person_s_configuration_asks_for_re_ranking(
    reranker: type[Backwards], library: User
) -> None:
    config = RetrievalConfig.objects.create(user=library, rerank_enabled=False, max_results=4)
    plain = wanted(user=library)
    assert len(plain) == 4
    assert {hit.rerank_score for hit in plain} == {None}

    config.rerank_enabled = True
    config.save()
    assert keys(wanted(user=library)) == [*keys(plain)[2::-1], *keys(plain)[3:]]
    assert keys(wanted(user=library, rerank=False)) == keys(plain)
    for rerank in (None, False):  # their number of results counts either way
        assert len(similarity_search([1, 0], user=library, rerank=rerank)) == 4
    assert keys(wanted(user=library, limit=2)) == keys(plain)[2:0:-1]
    # Somebody without a configuration, and a search for nobody in particular.
    assert {hit.rerank_score for hit in wanted(user=library.pk + 1)} == {None}
    assert {hit.rerank_score for hit in wanted()} == {None}


def test_maximal_marginal_relevance_sends_the_near_duplicate_down(library: User) -> None:
    assert keys(wanted())[:2] == ["flutter", "flutter-2"]

    by_default = settings.CARTRITA_SEARCH | {"RERANKER_OPTIONS": {"diversity": 0.7}}
    with override_settings(CARTRITA_SEARCH=by_default):
        diverse = keys(wanted(rerank=True))
    assert diverse[0] == "flutter"
    assert diverse.index("flutter-2") > 1


@pytest.mark.parametrize("function", [keyword_search, similarity_search])
def test_every_kind_of_search_can_be_re_ranked(
    reranker: type[Backwards], function: Callable[..., list[Hit]]
) -> None:
    query: Any = "wing" if function is keyword_search else [1, 0]
    plain = function(query, model="flat")
    hits = function(query, model="flat", rerank=True)
    assert set(keys(hits[:3])) == set(keys(plain[:3]))
    assert [hit.rerank_score for hit in hits[:3]] == sorted(
        -hit.hybrid_score for hit in plain[:3]
    )[::-1]
    assert hits[3:] == plain[3:]


# --- Metrics -----------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
def test_each_search_leaves_a_row_in_the_metrics() -> None:
    upsert_documents(
        [Document("notes", str(n), "", "wing", [1, n / 9], user_id=4) for n in range(9)],
        model="flat",
    )
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"RECORD_SEARCHES": True}):
        search("wing", vector=[1, 0], model="flat", rerank=True, limit=5)
        similarity_search([1, 0], user=4)
        keyword_search("nothing of the kind")
        with pytest.raises(errors.InvalidMatchCount):
            keyword_search("wing", limit=0)
        metrics.flush()

    rows = list(SearchPerformanceMetric.objects.order_by("id"))
    assert [(row.search_type, row.result_count, row.user_id) for row in rows] == [
        ("hybrid", 5, None),
        ("vector", 9, 4),
        ("keyword", 0, None),
    ]
    assert 0 < rows[0].metadata["rerank_ms"] < rows[0].execution_time_ms
    # The caller named none: the database's default it was.
    assert [row.metadata["model"] for row in rows] == ["flat", "flat", None]
    assert [row.metadata["zero_hits"] for row in rows] == [False, False, True]


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
@pytest.mark.parametrize("user", [None, 4])
def test_the_metrics_tell_the_time_of_each_leg(user: int | None) -> None:
    upsert_documents(
        [Document("notes", str(n), "", "wing", [1, n / 9], user_id=4) for n in range(9)],
        model="flat",
    )
    with override_settings(CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"RECORD_SEARCHES": True}):
        search("wing", vector=[1, 0], user=user)
        search("wing", vector=[1, 0], user=user, limit=5, offset=100)  # nothing left
        search("wing", vector=[1, 0], user=user, vector_weight=0)
        search("unknown", vector=[1, 0], user=user)
        similarity_search([1, 0], user=user, rerank=True)
        keyword_search("wing", user=user)
        metrics.flush()

    rows = list(SearchPerformanceMetric.objects.order_by("id"))
    legs = [sorted(row.metadata.keys() & {"vector_ms", "keyword_ms"}) for row in rows]
    assert legs == [
        ["keyword_ms", "vector_ms"],
        [],
        ["keyword_ms"],
        ["vector_ms"],
        ["vector_ms"],
        ["keyword_ms"],
    ]
    for row, names in zip(rows, legs, strict=True):
        parts = [row.metadata[name] for name in (*names, "rerank_ms") if name in row.metadata]
        assert all(part > 0 for part in parts)
        assert sum(parts) < row.execution_time_ms
