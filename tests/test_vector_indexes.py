"""Vector indexes: which one is planned, that it is built, measured, swapped in, and used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from tests.conftest import Connect
from tests.postgres import (
    index_name,
    indexes_used,
    prefer_vector_index,
    refused,
    scalar,
    upsert,
    vector_indexes,
    wait_until_blocked,
)
from tests.vectors import (
    DIMENSIONS,
    load,
    nearest,
    random_vector,
    register,
    settings,
    similar,
    state,
)

pytestmark = pytest.mark.usefixtures("clean_tables")

ROWS = 2500


def plan(pg: psycopg.Connection, model: str = "model", /, **wishes: object) -> dict[str, Any]:
    """vector_index_plan(), by the names of its columns."""
    statement = sql.SQL("SELECT * FROM vector_index_plan(%s{})").format(
        sql.SQL("").join(sql.SQL(", {} => %s").format(sql.Identifier(name)) for name in wishes)
    )
    with pg.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute(statement, [model, *wishes.values()]).fetchone()
    assert row is not None
    return row


def force(pg: psycopg.Connection, method: str, storage: str, model: str = "model") -> None:
    """Put an index of that method and storage in place, whatever the plan would be."""
    chosen = "FROM vector_index_plan(%s, %s, %s) AS p"
    statement = scalar(
        pg,
        f"SELECT vector_index_sql(p, vector_index_name(p.model_name)) {chosen}",
        [model, method, storage],
    )
    pg.execute(statement)
    pg.execute(
        "UPDATE embedding_models AS m SET index_method = p.method, index_storage = p.storage, "
        f"ivfflat_lists = p.lists, probes = p.lists {chosen} WHERE m.name = p.model_name",
        [model, method, storage],
    )


def rebuild(pg: psycopg.Connection, model: str | None = None) -> str:
    return str(scalar(pg, "SELECT rebuild_vector_indexes(%s)", [model]))


# --- The plan ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("row_count", "method"), [(0, "exact"), (1000, "exact"), (1001, "hnsw"), (10_000, "hnsw")]
)
def test_up_to_a_thousand_vectors_need_no_index(
    pg: psycopg.Connection, row_count: int, method: str
) -> None:
    register(pg, "model")
    planned = plan(pg, row_count=row_count)
    assert (planned["method"], planned["row_count"]) == (method, row_count)
    if method == "exact":
        assert "1000 vectors" in planned["reason"]
        assert planned["estimated_bytes"] == 0
        assert (planned["m"], planned["ef_construction"], planned["lists"]) == (None, None, None)
    else:
        assert (planned["m"], planned["ef_construction"], planned["lists"]) == (16, 64, None)


def test_the_rows_that_are_there_decide(pg: psycopg.Connection) -> None:
    load(pg, 1000)
    load(pg, 300, model="another")
    assert (plan(pg)["method"], plan(pg)["row_count"]) == ("exact", 1000)
    load(pg, 1, user_id=7)
    assert (plan(pg)["method"], plan(pg)["row_count"]) == ("hnsw", 1001)
    settings(pg, exact_scan_max_rows=1001)
    assert plan(pg)["method"] == "exact"
    assert "1001 vectors" in plan(pg)["reason"]
    settings(pg, exact_scan_max_rows=0)
    assert plan(pg, row_count=0)["method"] == "exact"
    assert plan(pg, row_count=1)["method"] == "hnsw"


@pytest.mark.parametrize(
    ("dimensions", "storage"),
    [(1, "halfvec"), (2001, "halfvec"), (4000, "halfvec"), (4001, "bit")],
)
def test_the_dimension_decides_on_the_storage(
    pg: psycopg.Connection, dimensions: int, storage: str
) -> None:
    register(pg, "model", dimensions)
    planned = plan(pg, row_count=2000)
    assert (planned["storage"], planned["dimensions"]) == (storage, dimensions)
    if storage == "bit":
        assert "4001 dimensions" in planned["reason"]
        assert "(4000)" in planned["reason"]


@pytest.mark.parametrize(
    ("storage", "most"), [("vector", 2000), ("halfvec", 4000), ("bit", 16_000)]
)
def test_a_storage_is_refused_beyond_its_dimensions(
    pg: psycopg.Connection, storage: str, most: int
) -> None:
    register(pg, "fits", most)
    assert plan(pg, "fits", storage=storage, method="hnsw")["storage"] == storage
    assert f"{storage} was asked for" in plan(pg, "fits", storage=storage, method="hnsw")["reason"]
    if most < 16_000:
        register(pg, "does not fit", most + 1)
        with refused(pg, "SE009", f"up to {most} dimensions.* has {most + 1}"):
            plan(pg, "does not fit", storage=storage)


@pytest.mark.parametrize(
    "wish", [{"method": "flat"}, {"method": None}, {"storage": "float"}, {"storage": None}]
)
def test_a_wish_that_does_not_exist_is_refused(
    pg: psycopg.Connection, wish: dict[str, object]
) -> None:
    register(pg, "model")
    with refused(pg, "SE009", "There is no index"):
        plan(pg, **wish)


def test_a_model_that_does_not_exist_is_refused(pg: psycopg.Connection) -> None:
    for function in ("vector_index_plan", "rebuild_vector_indexes"):
        statement = sql.SQL("SELECT {}('none')").format(sql.Identifier(function))
        with refused(pg, "SE003", 'no embedding model "none"'):
            pg.execute(statement)


MIB = 1 << 20
#: A halfvec of 384 dimensions, its header, 32 m + 200 bytes of links with m = 16.
BYTES_PER_NODE = 8 + 2 * 384 + 32 * 16 + 200
FITTING = 64 * MIB // BYTES_PER_NODE


@pytest.mark.parametrize("source", ["search_settings", "maintenance_work_mem"])
def test_the_memory_budget_decides_between_hnsw_and_ivfflat(
    pg: psycopg.Connection, source: str
) -> None:
    register(pg, "model", 384)
    if source == "search_settings":
        pg.execute("SET maintenance_work_mem = '1GB'")
        settings(pg, index_memory_budget_mb=64)
    else:
        pg.execute("SET maintenance_work_mem = '64MB'")

    fits = plan(pg, row_count=FITTING)
    assert fits["method"] == "hnsw"
    assert fits["estimated_bytes"] == FITTING * BYTES_PER_NODE <= fits["budget_bytes"] == 64 * MIB
    over = plan(pg, row_count=FITTING + 1)
    assert over["method"] == "ivfflat"
    assert over["estimated_bytes"] < fits["estimated_bytes"]
    for planned in (fits, over):
        assert f"64 MB ({source})" in planned["reason"]


def test_more_links_need_more_memory(pg: psycopg.Connection) -> None:
    register(pg, "model", 384)
    settings(pg, index_memory_budget_mb=64, hnsw_m=17)
    assert plan(pg, row_count=FITTING)["method"] == "ivfflat"


@pytest.mark.parametrize(
    ("row_count", "lists"),
    [
        (10, 1),
        (1001, 1),
        (2000, 2),
        (1_000_000, 1000),
        (1_000_001, 1000),
        (4_000_000, 2000),
        (2_000_000_000, 32_768),
    ],
)
def test_lists_are_a_thousandth_and_the_square_root_beyond_a_million(
    pg: psycopg.Connection, row_count: int, lists: int
) -> None:
    register(pg, "model")
    assert plan(pg, row_count=row_count, method="ivfflat")["lists"] == lists


def test_beyond_100_000_rows_the_statistics_count(pg: psycopg.Connection) -> None:
    register(pg, "model", 1)
    with pg.transaction():
        # Neither triggers nor foreign keys: only the number of rows matters.
        pg.execute("SET LOCAL session_replication_role = replica")
        pg.execute(
            """
            INSERT INTO embeddings
                (document_id, source_table, source_id, embedding_model, embedding, content_hash)
            SELECT gen_random_uuid(), 'notes', n, 'model', '[1]', ''
            FROM generate_series(1, 100001) AS n
            """
        )
    pg.execute("ANALYZE embeddings")
    estimated = "UPDATE pg_class SET reltuples = %s WHERE oid = 'embeddings'::regclass"
    pg.execute(estimated, [5_000_000])
    assert plan(pg)["row_count"] == 5_000_000
    # Rows were counted that statistics of long ago know nothing of.
    pg.execute(estimated, [10])
    assert plan(pg)["row_count"] == 100_001

    pg.execute("DELETE FROM embeddings WHERE ctid IN (SELECT ctid FROM embeddings LIMIT 1)")
    pg.execute(estimated, [5_000_000])
    assert plan(pg)["row_count"] == 100_000


# --- Names ------------------------------------------------------------------

NAMES = [
    """it's a "model" with 'quotes'""",
    "100% %s %1$s %L",
    "'; DROP TABLE embeddings; --",
    "back\\slash\nand $$dollars$$",
    "模型-ёж-🦔",
    "m" * 200,
]


def test_an_index_name_is_short_and_its_model_s_own(pg: psycopg.Connection) -> None:
    alike = ["a-b", "a_b", "A b", "a--b", "m" * 199, "\N{GREEK SMALL LETTER MU}" * 200]
    names = [index_name(pg, model) for model in [*NAMES, *alike]]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(f"{name}__new".encode()) <= 63
        assert name.startswith("embeddings_")
        assert name.isascii()


@pytest.mark.parametrize("model", NAMES, ids=ascii)
def test_any_name_of_a_model_works_from_upsert_to_search(
    pg: psycopg.Connection, model: str
) -> None:
    settings(pg, exact_scan_max_rows=10)
    load(pg, 40, model="bystander", dimensions=3)
    for number in range(40):
        upsert(pg, str(number), [1.0, number, number * number], model)

    report = rebuild(pg, model)

    assert report.startswith(f"{model}: HNSW on halfvec")
    name = index_name(pg, model)
    assert list(vector_indexes(pg)) == [name]
    prefer_vector_index(pg)
    query, parameters = (
        "SELECT source_id FROM similarity_search(%s, match_count => 3, model_name => %s)",
        ["[1,5,25]", model],
    )
    assert name in indexes_used(pg, query, parameters)
    assert pg.execute(query, parameters).fetchone() == ("5",)


# --- Use --------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["vector", "halfvec", "bit"])
@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_a_search_uses_the_index_and_finds_what_the_exact_scan_finds(
    pg: psycopg.Connection, method: str, storage: str
) -> None:
    load(pg, ROWS)
    force(pg, method, storage)
    query = random_vector("query")
    name = index_name(pg)
    if storage != "halfvec":  # the one that plans choose is chosen by the planner as it is
        prefer_vector_index(pg)

    assert name in indexes_used(pg, "SELECT * FROM similarity_search(%s)", [query])
    hybrid = "SELECT * FROM hybrid_search('title', %s)"
    assert name in indexes_used(pg, hybrid, [query])
    with pg.transaction(force_rollback=True):
        pg.execute("UPDATE embedding_models SET index_method = 'exact'")
        assert name not in indexes_used(pg, "SELECT * FROM similarity_search(%s)", [query])

    queries = [random_vector(number) for number in range(20)]
    found = sum(len({*similar(pg, q)} & {*nearest(pg, q)}) for q in queries)
    # One bit a component is a rough order: 200 candidates of 2,500 for ten.
    assert found / (10 * len(queries)) >= (0.5 if storage == "bit" else 0.9)


def test_similarities_are_exact_whatever_the_index_stores(pg: psycopg.Connection) -> None:
    load(pg, ROWS)
    force(pg, "hnsw", "halfvec")
    query = random_vector("query")
    rows = pg.execute(
        "SELECT s.similarity, 1 - (e.embedding <=> %(q)s::vector) "
        "FROM similarity_search(%(q)s) AS s JOIN embeddings AS e USING (id)",
        {"q": query},
    ).fetchall()
    assert len(rows) == 10
    assert [said for said, _ in rows] == sorted((true for _, true in rows), reverse=True)


def test_a_search_gives_as_many_rows_as_asked_for(pg: psycopg.Connection) -> None:
    """More than ef_search would give, and past what a filter throws away."""
    load(pg, ROWS)
    load(pg, 50, user_id=7)
    load(pg, 50, user_id=8)
    force(pg, "hnsw", "halfvec")
    pg.execute("UPDATE search_documents SET user_id = 9 WHERE user_id IS NULL")
    pg.execute("VACUUM ANALYZE embeddings")
    pg.execute("SET enable_bitmapscan = off; SET enable_sort = off")
    query = random_vector("query")

    for count in (50, 1500):
        assert len(similar(pg, query, count)) == count
    assert index_name(pg) in indexes_used(
        pg, "SELECT * FROM similarity_search(%s, match_count => 20)", [query]
    )
    assert len(similar(pg, query, 20, user_id_filter=7)) == 20


# --- Parameters that must not leak ------------------------------------------

PARAMETERS = (
    "hnsw.ef_search",
    "hnsw.iterative_scan",
    "ivfflat.probes",
    "ivfflat.iterative_scan",
    "enable_seqscan",
    "jit",
    "search_path",
)


def parameters(pg: psycopg.Connection) -> list[Any]:
    return [scalar(pg, "SELECT current_setting(%s)", [name]) for name in PARAMETERS]


SEARCHES = (
    "SELECT * FROM similarity_search(%s)",
    "SELECT * FROM hybrid_search('title', %s)",
    "SELECT * FROM hybrid_search_for_user(7, 'title', %s)",
)


@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_a_search_leaves_every_parameter_as_it_was(
    pg: psycopg.Connection, connect: Connect, method: str
) -> None:
    load(pg, 50)
    force(pg, method, "halfvec")
    query = random_vector("query")
    defaults = parameters(pg)
    for search in SEARCHES:
        pg.execute(search, [query])
        assert parameters(pg) == defaults

    pg.execute("SET hnsw.ef_search = 77; SET ivfflat.probes = 3")
    session = parameters(pg)
    with pg.transaction():
        pg.execute("SET LOCAL hnsw.iterative_scan = strict_order")
        local = parameters(pg)
        for search in SEARCHES:
            pg.execute(search, [query])
            assert parameters(pg) == local
    assert parameters(pg) == session

    # An error in the statement itself, when the parameters are set.
    holder = connect(autocommit=False)
    holder.execute("LOCK TABLE embeddings IN ACCESS EXCLUSIVE MODE")
    pg.execute("SET lock_timeout = '50ms'")
    for search in SEARCHES:
        with pg.transaction():
            with pytest.raises(psycopg.errors.LockNotAvailable), pg.transaction():
                pg.execute(search, [query])
            assert parameters(pg) == session
        with pytest.raises(psycopg.errors.LockNotAvailable):
            pg.execute(search, [query])
        assert parameters(pg) == session


def test_a_rebuild_leaves_every_parameter_as_it_was(pg: psycopg.Connection) -> None:
    settings(pg, exact_scan_max_rows=10)
    load(pg, 50)
    before = parameters(pg)
    with pg.transaction():
        rebuild(pg)
        assert parameters(pg) == before


# --- Rebuild ----------------------------------------------------------------


def test_a_rebuild_follows_the_plan_and_records_what_it_did(pg: psycopg.Connection) -> None:
    load(pg, ROWS, "large")
    load(pg, 30, "small")
    register(pg, "none yet")

    lines = rebuild(pg).splitlines()

    assert list(vector_indexes(pg)) == [index_name(pg, "large")]
    assert [line.partition(": ")[0] for line in lines] == ["large", "none yet", "small"]
    large, small, none = (state(pg, model) for model in ("large", "small", "none yet"))
    assert (large["index_method"], large["index_storage"]) == ("hnsw", "halfvec")
    assert (large["hnsw_m"], large["hnsw_ef_construction"]) == (16, 64)
    assert (large["ivfflat_lists"], large["probes"]) == (None, None)
    assert large["indexed_rows"] == ROWS
    assert large["measured_recall"] >= large["target_recall"] == 0.95
    assert 40 <= large["ef_search"] <= 1000
    assert (
        f"recall@10 {large['measured_recall']:.3f} at ef_search {large['ef_search']}" in lines[0]
    )
    for exact, rows in ((small, 30), (none, 0)):
        assert (exact["index_method"], exact["indexed_rows"]) == ("exact", rows)
        assert (exact["measured_recall"], exact["ef_search"]) == (1, None)
    for row in (large, small, none):
        assert scalar(
            pg,
            "SELECT %s BETWEEN pg_postmaster_start_time() AND clock_timestamp()",
            [row["indexed_at"]],
        )
    # Statistics of keywords come with it.
    assert scalar(pg, "SELECT documents FROM keyword_corpora") == ROWS + 30


def test_the_measured_recall_is_that_of_the_index(pg: psycopg.Connection) -> None:
    load(pg, ROWS)
    rebuild(pg)
    searched = pg.execute("SELECT id, embedding::text FROM embeddings ORDER BY id LIMIT 50")
    found = 0
    for key, vector in searched.fetchall():
        # The vector itself is its own nearest, and does not count.
        true, said = nearest(pg, vector, 11), similar(pg, vector, 11)
        assert true[0] == said[0] == key
        found += len({*true[1:]} & {*said[1:]})
    assert abs(found / 500 - state(pg)["measured_recall"]) <= 0.01


def test_a_graph_beyond_the_budget_becomes_ivfflat(pg: psycopg.Connection) -> None:
    load(pg, ROWS)
    settings(pg, index_memory_budget_mb=1)
    report = rebuild(pg)
    recorded = state(pg)
    assert (recorded["index_method"], recorded["ivfflat_lists"]) == ("ivfflat", 2)
    assert (recorded["hnsw_m"], recorded["ef_search"]) == (None, None)
    assert recorded["probes"] == 2
    assert recorded["measured_recall"] == 1  # all lists are searched
    assert "IVFFlat on halfvec, 2 lists" in report
    assert "1024 kB (search_settings)" in report
    query = random_vector("query")
    assert similar(pg, query) == nearest(pg, query)


def test_a_graph_gets_the_memory_that_the_plan_counts_on(pg: psycopg.Connection) -> None:
    """pgvector says so when a graph outgrows maintenance_work_mem, and goes on slowly."""
    load(pg, ROWS)
    settings(pg, index_memory_budget_mb=64)
    pg.execute("SET maintenance_work_mem = '1MB'; SET max_parallel_maintenance_workers = 1")
    said: list[str | None] = []
    pg.add_notice_handler(lambda notice: said.append(notice.message_primary))
    with pg.transaction():
        assert "HNSW" in rebuild(pg)
        assert scalar(pg, "SHOW maintenance_work_mem") == "1MB"
        assert scalar(pg, "SHOW max_parallel_maintenance_workers") == "1"
    assert said == []
    # The session's own is more than the setting: it is left alone.
    settings(pg, index_memory_budget_mb=None)
    rebuild(pg)
    assert state(pg)["index_method"] == "ivfflat"


def test_a_second_rebuild_swaps_the_index_and_a_smaller_model_loses_it(
    pg: psycopg.Connection,
) -> None:
    settings(pg, exact_scan_max_rows=10)
    load(pg, 50)
    rebuild(pg)
    first = vector_indexes(pg)
    rebuild(pg)
    second = vector_indexes(pg)
    assert list(first) == list(second) == [index_name(pg)]
    assert first != second

    pg.execute("DELETE FROM search_documents WHERE source_id > 'None/14'")
    assert "exact scan" in rebuild(pg)
    assert vector_indexes(pg) == {}
    assert state(pg)["index_method"] == "exact"
    assert len(similar(pg, random_vector("query"))) == 7


def test_only_the_named_model_is_rebuilt(pg: psycopg.Connection) -> None:
    settings(pg, exact_scan_max_rows=10)
    load(pg, 50, "a")
    load(pg, 50, "b")
    rebuild(pg)
    before, untouched = vector_indexes(pg), state(pg, "b")
    assert len(rebuild(pg, "a").splitlines()) == 1
    after = vector_indexes(pg)
    assert before[index_name(pg, "a")] != after[index_name(pg, "a")]
    assert before[index_name(pg, "b")] == after[index_name(pg, "b")]
    assert state(pg, "b") == untouched


def test_without_models_there_is_nothing_to_rebuild(pg: psycopg.Connection) -> None:
    assert rebuild(pg) == "No embedding model is registered: nothing to index."


def test_models_of_every_dimension_up_to_the_largest(pg: psycopg.Connection) -> None:
    settings(pg, exact_scan_max_rows=10)
    load(pg, 20, "largest", 16_000)
    load(pg, 20, "bits", 4001)
    load(pg, 20, "halves", 4000)
    rebuild(pg)
    assert [state(pg, m)["index_storage"] for m in ("largest", "bits", "halves")] == [
        "bit",
        "bit",
        "halfvec",
    ]
    assert len(vector_indexes(pg)) == 3
    query = random_vector("query", 16_000)
    assert len(similar(pg, query, model_name="largest")) == 10


# --- Rebuild beside others --------------------------------------------------


@pytest.fixture
def in_thread() -> Iterator[Callable[..., Any]]:
    """Run a function beside the test; its future has the result.

    Ask for it before the connections: they must be closed for what waits to end.
    """
    with ThreadPoolExecutor() as threads:
        yield threads.submit


def indexed(pg: psycopg.Connection, *models: str) -> None:
    settings(pg, exact_scan_max_rows=10)
    for model in models:
        load(pg, 50, model)
    rebuild(pg)


def test_searches_go_on_until_the_first_index_is_committed(
    pg: psycopg.Connection, connect: Connect
) -> None:
    settings(pg, exact_scan_max_rows=10)
    load(pg, 50)
    query = random_vector("query")
    answer = similar(pg, query)
    builder = connect(autocommit=False)
    rebuild(builder)

    pg.execute("SET lock_timeout = '50ms'")
    assert similar(pg, query) == answer
    assert vector_indexes(pg) == {}
    assert state(pg)["index_method"] == "exact"
    with pytest.raises(psycopg.errors.LockNotAvailable):  # writers wait
        upsert(pg, "new", [1.0] * DIMENSIONS, "model")
    with refused(connect(), "SE010", "Another session is rebuilding"):
        rebuild(pg)

    builder.commit()
    assert similar(pg, query) == answer
    assert state(pg)["index_method"] == "hnsw"


def test_a_rebuild_that_waits_keeps_no_reader_waiting_and_undoes_all_when_cancelled(
    in_thread: Callable[..., Any], pg: psycopg.Connection, connect: Connect
) -> None:
    indexed(pg, "a", "b")
    before = vector_indexes(pg), state(pg, "a"), state(pg, "b")
    answer = similar(pg, random_vector("query"), model_name="a")
    holder, builder = connect(autocommit=False), connect()
    holder.execute("SELECT FROM embedding_models WHERE name = 'b' FOR UPDATE")
    rebuilt = in_thread(rebuild, builder)
    wait_until_blocked(pg, builder.info.backend_pid)

    # By now "a" is swapped, and the index it had serves everybody else.
    reader = connect(options="-c lock_timeout=50ms")
    assert similar(reader, random_vector("query"), model_name="a") == answer

    pg.execute("SELECT pg_cancel_backend(%s)", [builder.info.backend_pid])
    with pytest.raises(psycopg.errors.QueryCanceled):
        rebuilt.result()
    assert (vector_indexes(pg), state(pg, "a"), state(pg, "b")) == before
    holder.rollback()
    rebuild(builder)
    assert vector_indexes(pg).keys() == before[0].keys()
    assert vector_indexes(pg) != before[0]


def test_a_reader_that_stays_keeps_its_index_and_the_rebuild_says_so(
    pg: psycopg.Connection, connect: Connect
) -> None:
    indexed(pg, "model")
    former = vector_indexes(pg)[index_name(pg)]
    query = random_vector("query")
    reader = connect(autocommit=False)
    answer = similar(reader, query)

    report = rebuild(pg)

    old = f"{index_name(pg)}__old"
    assert f"DROP INDEX CONCURRENTLY {old};" in report
    assert vector_indexes(pg)[old] == former != vector_indexes(pg)[index_name(pg)]
    assert similar(reader, query) == answer
    reader.commit()
    with refused(pg, "SE010", f"Index {old} is left"):
        rebuild(pg)
    pg.execute(sql.SQL("DROP INDEX CONCURRENTLY {}").format(sql.Identifier(old)))
    rebuild(pg)
    assert list(vector_indexes(pg)) == [index_name(pg)]


def test_a_reader_who_then_writes_is_never_the_victim_of_a_deadlock(
    in_thread: Callable[..., Any], pg: psycopg.Connection, connect: Connect
) -> None:
    indexed(pg, "model")
    # Deadlocks are looked for once, so long after a wait has begun.
    application = connect(autocommit=False, options="-c deadlock_timeout=100ms")
    builder = connect()
    similar(application, random_vector("query"))
    rebuilt = in_thread(rebuild, builder)
    while not rebuilt.done() and not scalar(
        pg,
        "SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation "
        "WHERE l.pid = %s AND c.relname = %s",
        [builder.info.backend_pid, index_name(pg)],
    ):
        pass  # until it swaps; from there on it wants to drop the former index

    upsert(application, "new", [1.0] * DIMENSIONS, "model")  # waits for the rebuild
    application.commit()

    assert "in use and stays" in rebuilt.result()
    assert scalar(pg, "SELECT count(*) FROM embeddings WHERE source_id = 'new'") == 1
