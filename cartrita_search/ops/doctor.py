"""What may be wrong with a search database: what shows it, and the command that mends it.

`examine` (of `diagnosis`) asks these rules. docs/troubleshooting.md explains each by its id;
an id is never used again for something else.
"""

from __future__ import annotations

import importlib
import json
import shlex
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends import cache, cached_db
from django.core.cache import caches
from django.db.migrations.loader import MigrationLoader
from django.template.defaultfilters import filesizeformat
from psycopg import sql

from .. import db
from ..conf import search_settings
from . import migration_guard
from .diagnosis import RULES, Evidence, Examination, NotSeen, Patient, Thresholds, examine, rule
from .stuck_queries import duration, search_tables

__all__ = ["RULES", "Examination", "Thresholds", "examine"]

# --- The server and what is installed ----------------------------------------


@rule("D001", "error", "PostgreSQL or pgvector is missing, too old, or out of place")
def _requirements(patient: Patient) -> Iterator[Evidence]:
    missing = db.missing_requirement(patient.connection, to_migrate=False)
    if missing is not None:
        yield missing.problem, missing.remedy


@rule("D002", "warning", "pgvector is older than the version that fixed graph repair")
def _risky_pgvector(patient: Patient) -> Iterator[Evidence]:
    version = db.pgvector_version(patient.connection)
    if version is not None and db.MINIMUM_PGVECTOR <= version < db.ADVISED_PGVECTOR:
        yield (
            f"pgvector {'.'.join(map(str, version))} may corrupt an HNSW index when vacuum and"
            " inserts meet.",
            "ALTER EXTENSION vector UPDATE; (after installing 0.8.4 or newer on the server)",
        )


@rule("D003", "warning", "An upgrade of the extension is pending", check="W002")
def _pending_upgrade(patient: Patient) -> Iterator[Evidence]:
    for installed, available in patient.rows(
        "SELECT e.extversion, a.default_version FROM pg_extension AS e"
        " JOIN pg_available_extensions AS a ON a.name = e.extname WHERE e.extname = 'vector'"
    ):
        if db.version_tuple(installed) < db.version_tuple(available):
            yield (
                f"The server has pgvector {available}; this database still uses {installed}.",
                "ALTER EXTENSION vector UPDATE;",
            )


# --- Migrations --------------------------------------------------------------


@rule("D004", "error", "Migrations are not applied", check="W003")
def _unapplied_migrations(patient: Patient) -> Iterator[Evidence]:
    loader = MigrationLoader(patient.connection)
    names = sorted(".".join(key) for key in loader.graph.nodes.keys() - loader.applied_migrations)
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        yield f"{len(names)} not applied: {shown}", "manage.py migrate"


@rule("D005", "error", "The record of migrations and the files disagree")
def _wrong_migrations(patient: Patient) -> Iterator[Evidence]:
    for record in migration_guard.records(using=patient.using):
        if record.is_wrong:
            yield f"{record.version}: {record.state}.", "manage.py verify_migrations"


# --- Indexes -----------------------------------------------------------------

#: Nobody is building it: not by CREATE INDEX, and not under the rebuild's lock.
_BROKEN_INDEXES = """
    SELECT format('%%I.%%I', n.nspname, i.relname), i.relname ~ %(leftover)s, a.amname
    FROM pg_index AS x
    JOIN pg_class AS i ON i.oid = x.indexrelid
    JOIN pg_class AS t ON t.oid = x.indrelid
    JOIN pg_namespace AS n ON n.oid = i.relnamespace
    JOIN pg_am AS a ON a.oid = i.relam
    WHERE t.oid = ANY (SELECT to_regclass(name) FROM unnest(%(tables)s::text[]) AS name)
        AND (NOT x.indisvalid OR i.relname ~ %(leftover)s)
        AND NOT EXISTS (
            SELECT FROM pg_stat_progress_create_index AS p WHERE p.index_relid = i.oid)
        AND NOT EXISTS (
            SELECT FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
            WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                AND d.datname = current_database()
                AND (l.classid::bigint << 32) | l.objid::bigint = %(lock)s)
    ORDER BY 1
"""
_LEFTOVER = r"(__new|__old|_ccnew\d*|_ccold\d*)$"


def _broken_indexes(patient: Patient, *, leftover: bool) -> list[tuple[str, str]]:
    rows = patient.rows(
        _BROKEN_INDEXES,
        {"leftover": _LEFTOVER, "tables": list(search_tables()), "lock": db.REBUILD_LOCK},
    )
    return [(name, method) for name, is_leftover, method in rows if is_leftover == leftover]


@rule("D006", "error", "An index is invalid", check="W004")
def _invalid_indexes(patient: Patient) -> Iterator[Evidence]:
    for name, method in _broken_indexes(patient, leftover=False):
        vector = method in {"hnsw", "ivfflat"}
        yield (
            f"{name} is invalid: its build did not end. Every write keeps it up, no search uses"
            " it.",
            "manage.py rebuild_vector_indexes"
            if vector
            else f"REINDEX INDEX CONCURRENTLY {name};",
        )


@rule("D007", "warning", "An index is left over from a rebuild", check="W005")
def _leftover_indexes(patient: Patient) -> Iterator[Evidence]:
    for name, _ in _broken_indexes(patient, leftover=True):
        yield (
            f"{name} is left over: every write keeps it up, no search needs it.",
            f"DROP INDEX CONCURRENTLY {name};",
        )


_MODELS = """
    SELECT m.name, m.index_method, (vector_index_plan(m.name)).method,
        (vector_index_plan(m.name)).reason, coalesce(a.amname, 'exact')
    FROM embedding_models AS m
    LEFT JOIN pg_class AS i
        ON i.relname = vector_index_name(m.name) AND i.relnamespace = 'public'::regnamespace
    LEFT JOIN pg_am AS a ON a.oid = i.relam
    ORDER BY m.name
"""


def _rebuild(model: str) -> str:
    return f"manage.py rebuild_vector_indexes --model {shlex.quote(model)}"


@rule("D008", "warning", "A model's index is not the one that its plan calls for")
def _unplanned_indexes(patient: Patient) -> Iterator[Evidence]:
    for model, recorded, planned, reason, actual in patient.rows(_MODELS):
        if recorded != actual:
            yield (
                f"{model}: searches expect {recorded}, in place is {actual}.",
                _rebuild(model),
            )
        elif planned != actual:
            yield f"{model}: planned is {planned}, in place {actual}. {reason}", _rebuild(model)


#: The statement of a search, and a stored vector to search by.
_SEARCHES = """
    SELECT m.name, vector_index_name(m.name), vector_row_count(m.name),
        vector_candidates_sql(m, NULL, 10),
        (SELECT e.embedding::text FROM embeddings AS e
         WHERE e.embedding_model = m.name AND e.segment <= m.visible_segment LIMIT 1)
    FROM embedding_models AS m
    JOIN pg_class AS i
        ON i.relname = vector_index_name(m.name) AND i.relnamespace = 'public'::regnamespace
    JOIN pg_index AS x ON x.indexrelid = i.oid AND x.indisvalid
    WHERE m.index_method <> 'exact'
    ORDER BY m.name
"""


#: A scan of all and a sort is what a search does without the index.
_SET_OTHER_WAYS = """
    SELECT set_config(name, %s, true)
    FROM unnest(ARRAY['enable_seqscan', 'enable_bitmapscan', 'enable_sort']) AS name
"""


@rule("D009", "warning", "The planner does not use a model's index")
def _unused_indexes(patient: Patient) -> Iterator[Evidence]:
    for model, index, rows, statement, vector in patient.rows(_SEARCHES):
        if vector is None:
            continue
        literal = sql.SQL("{}::vector").format(sql.Literal(vector)).as_string()
        search = statement.replace("$1", literal).replace("$2", "10")
        patient.rows(
            "SELECT begin_vector_scan(m, 10) FROM embedding_models AS m WHERE m.name = %s", [model]
        )
        if _plans_with(patient, search, index):
            continue
        patient.rows(_SET_OTHER_WAYS, ["off"])
        possible = _plans_with(patient, search, index)
        patient.rows(_SET_OTHER_WAYS, ["on"])
        if not possible:
            yield (
                f"{model}: a search cannot use {index}; every search compares all its vectors.",
                _rebuild(model),
            )
        elif rows >= patient.thresholds.planner_rows:
            yield (
                f"{model}: the planner takes a scan of all {rows} vectors for cheaper than"
                f" {index}.",
                "VACUUM (ANALYZE) embeddings; (if it stays, see random_page_cost)",
            )


def _plans_with(patient: Patient, statement: str, index: str) -> bool:
    explain = sql.SQL("EXPLAIN (FORMAT JSON) {}").format(sql.SQL(statement)).as_string()
    ((plan,),) = patient.rows(explain)
    return json.dumps(index) in json.dumps(plan)


@rule("D010", "warning", "Measured recall is below the target")
def _low_recall(patient: Patient) -> Iterator[Evidence]:
    for model, measured, target in patient.rows(
        "SELECT name, measured_recall, target_recall FROM embedding_models"
        " WHERE measured_recall < target_recall ORDER BY name"
    ):
        yield f"{model}: recall@10 is {measured:.3f}, the target {target:g}.", _rebuild(model)


@rule("D011", "warning", "Vectors of a large load are not found before a rebuild")
def _vectors_put_aside(patient: Patient) -> Iterator[Evidence]:
    for model, count in patient.rows(
        "SELECT m.name, count(*) FROM embedding_models AS m JOIN embeddings AS e"
        " ON e.embedding_model = m.name AND e.segment > m.visible_segment GROUP BY 1 ORDER BY 1"
    ):
        yield f"{model}: {count} vectors are put aside.", _rebuild(model)


# --- Documents, statistics, weights ------------------------------------------


@rule("D012", "warning", "Embeddings are missing or stale")
def _missing_embeddings(patient: Patient) -> Iterator[Evidence]:
    for model, documents, missing, stale in patient.rows(
        "SELECT embedding_model, sum(documents), sum(missing), sum(stale)"
        " FROM vector_search_stats GROUP BY 1 ORDER BY 1"
    ):
        if model is None:
            yield f"No document of {documents} has a vector.", "manage.py sync_embeddings"
        elif missing or stale:
            yield (
                f"{model}: {missing} of {documents} documents have no vector, {stale} one of an"
                " older text.",
                f"manage.py sync_embeddings --model {shlex.quote(model)}",
            )


@rule("D013", "warning", "The keyword statistics are older than the corpus")
def _old_keyword_statistics(patient: Patient) -> Iterator[Evidence]:
    for language, documents, counted in patient.rows(
        "SELECT language, coalesce(d.documents, 0), coalesce(c.documents, 0) FROM"
        " (SELECT language, count(*) AS documents FROM search_documents GROUP BY 1) AS d"
        " FULL JOIN keyword_corpora AS c USING (language) ORDER BY 1"
    ):
        if abs(documents - counted) > patient.thresholds.keyword_drift * max(documents, counted):
            yield (
                f"{language}: they count {counted} documents, and there are {documents}.",
                "SELECT refresh_keyword_statistics();",
            )


@rule("D014", "error", "A configuration of weights is invalid", check="W006")
def _invalid_weights(patient: Patient) -> Iterator[Evidence]:
    # Before it is migrated, v1 has a table of that name, whose rows import_v1 sees to.
    patient.rows("SELECT FROM embedding_models LIMIT 0")
    # The table's constraints see to it, where nobody has dropped them. NaN is above all.
    for key, vector, keyword in patient.rows(
        "SELECT id, vector_weight, keyword_weight FROM retrieval_configs"
        " WHERE NOT (vector_weight BETWEEN 0 AND 1 AND keyword_weight BETWEEN 0 AND 1"
        " AND abs(vector_weight + keyword_weight - 1) <= 1e-6"
        " AND similarity_threshold BETWEEN 0 AND 1 AND max_results BETWEEN 1 AND 1000)"
        " ORDER BY id"
    ):
        mend = sql.SQL(
            "UPDATE retrieval_configs SET vector_weight = 0.7, keyword_weight = 0.3,"
            " similarity_threshold = 0, max_results = 10 WHERE id = {};"
        ).format(key)
        yield (
            f"Row {key} of retrieval_configs ({vector:g} / {keyword:g}): weights and threshold"
            " are in [0, 1], the weights sum to 1, and results are 1 to 1000.",
            mend.as_string(),
        )
    for user, count, latest in patient.rows(
        "SELECT user_id, count(*), max(id) FROM retrieval_configs WHERE is_active"
        " GROUP BY 1 HAVING count(*) > 1 ORDER BY 1"
    ):
        mend = sql.SQL(
            "UPDATE retrieval_configs SET is_active = false"
            " WHERE user_id IS NOT DISTINCT FROM {} AND id <> {};"
        ).format(user, latest)
        whose = "The site" if user is None else f"User {user}"
        yield f"{whose} has {count} active configurations.", mend.as_string()


# --- Tables ------------------------------------------------------------------

_TABLES = """
    SELECT c.oid::regclass::text, c.relpages, s.n_live_tup, s.n_dead_tup,
        coalesce(s.last_analyze, s.last_autoanalyze) IS NULL AND NOT EXISTS (
            SELECT FROM pg_stats AS p
            WHERE p.schemaname = 'public' AND p.tablename = c.relname) AS unanalyzed,
        pg_relation_size(c.oid),
        -- 24 bytes of header and item pointer, and alignment, a row. NULL: not to be seen.
        CASE WHEN c.reltuples <= 0 THEN 0 ELSE c.reltuples * (32 + (
            SELECT sum(p.avg_width * (1 - p.null_frac)) FROM pg_stats AS p
            WHERE p.schemaname = 'public' AND p.tablename = c.relname)) END,
        pg_relation_size(c.oid) / current_setting('block_size')::integer
    FROM pg_class AS c
    JOIN pg_stat_all_tables AS s ON s.relid = c.oid
    WHERE c.relkind = 'r'
        AND c.oid = ANY (SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)
    ORDER BY 1
"""


#: Each commit leaves a row there that the next one replaces. Searches and writers go past the
#: dead ones by its index, and their space is filled again: how many there are tells of the
#: last minute's writes, and the table's size of the longest transaction.
_GENERATIONS = frozenset({"search_generations", "public.search_generations"})


def _tables(patient: Patient) -> list[tuple[Any, ...]]:
    return patient.rows(_TABLES, [list(search_tables())])


@rule("D015", "warning", "A table was never analyzed")
def _unanalyzed_tables(patient: Patient) -> Iterator[Evidence]:
    for table, _, _, _, unanalyzed, size, _, pages in _tables(patient):
        if unanalyzed and pages >= patient.thresholds.analyze_pages:
            yield (
                f"{table} ({filesizeformat(size)}) was never analyzed: the planner guesses.",
                f"VACUUM (ANALYZE) {table};",
            )


@rule("D016", "warning", "A table has many dead tuples")
def _dead_tuples(patient: Patient) -> Iterator[Evidence]:
    limits = patient.thresholds
    for table, _, live, dead, *_ in _tables(patient):
        many = dead >= limits.dead_tuples and dead > limits.dead_share * live
        if many and table not in _GENERATIONS:
            yield f"{table}: {dead} dead tuples, {live} live ones.", f"VACUUM (ANALYZE) {table};"


@rule("D017", "warning", "A table is bloated")
def _bloat(patient: Patient) -> Iterator[Evidence]:
    limits = patient.thresholds
    for table, _, _, _, unanalyzed, size, expected, _ in _tables(patient):
        if expected is None:
            if unanalyzed:
                continue
            raise NotSeen(f"how wide rows are is hidden from who may not read {table}")
        wasted = size - expected
        limit = limits.generations_bytes if table in _GENERATIONS else limits.bloat_bytes
        if not unanalyzed and wasted > limit and size > limits.bloat_factor * expected:
            yield (
                f"{table} takes {filesizeformat(size)}, its rows about"
                f" {filesizeformat(expected)}.",
                # Else all who come later would wait behind it for whoever has the table.
                f"SET lock_timeout = '5s'; VACUUM (FULL, ANALYZE) {table};"
                " (locks it meanwhile; pg_repack does not)",
            )


# --- Redis and sessions ------------------------------------------------------


def _redis_servers() -> Iterator[tuple[str, Any]]:
    """The Redis servers of CACHES: the aliases of each, and a client."""
    try:
        from django_redis.cache import RedisCache
    except ImportError:  # then there is none
        return
    aliases: dict[str, list[str]] = {}
    clients: dict[str, Any] = {}
    for alias in settings.CACHES:
        found: Any = caches[alias]
        if isinstance(found, RedisCache):
            client = found.client.get_client(write=True)
            pool = client.connection_pool
            where = {key: pool.connection_kwargs.get(key) for key in ("host", "port", "path")}
            server = str([where, getattr(pool, "service_name", None)])
            aliases.setdefault(server, []).append(alias)
            clients.setdefault(server, client)
    for server, names in aliases.items():
        yield ", ".join(names), clients[server]


def _mends_redis(failure: str) -> str:
    """By the class of Redis' error."""
    if failure == "OutOfMemoryError":
        return "redis-cli CONFIG SET maxmemory-policy volatile-lru (or a larger maxmemory)"
    if failure == "ReadOnlyError":
        return "redis-cli REPLICAOF NO ONE (or let REDIS_URL name the primary)"
    return "redis-cli ping (check REDIS_URL, and that the server runs)"


@rule("D018", "warning", "Redis does not answer, or takes no writes")
def _unusable_redis(patient: Patient) -> Iterator[Evidence]:
    from redis import RedisError

    for names, client in _redis_servers():
        try:
            # What the breaker tries: one that is full, or a replica by now, answers PING.
            client.set("cartrita:breaker", b"1", px=1000)
        except RedisError as error:
            yield (
                f"The cache {names}: {error} Searches are answered by PostgreSQL alone.",
                _mends_redis(type(error).__name__),
            )


@rule("D019", "warning", "Redis evicts, or has no bound")
def _redis_memory(patient: Patient) -> Iterator[Evidence]:
    from redis import RedisError

    for names, client in _redis_servers():
        try:
            memory, evicted = client.info("memory"), client.info("stats")["evicted_keys"]
        except RedisError:  # D018
            continue
        used = filesizeformat(memory["used_memory"])
        policy = memory.get("maxmemory_policy", "")
        if not memory.get("maxmemory"):
            yield (
                f"The cache {names} has no maxmemory ({used} used): it grows until the machine"
                " has none left.",
                "redis-cli CONFIG SET maxmemory 256mb",
            )
        elif policy == "noeviction" or policy.startswith("allkeys"):
            does = "refuses writes when it is full" if policy == "noeviction" else "evicts any key"
            yield (
                f"The cache {names} {does} (maxmemory-policy {policy}).",
                "redis-cli CONFIG SET maxmemory-policy volatile-lru",
            )
        elif evicted:
            yield (
                f"The cache {names} has evicted {evicted} keys ({used} of"
                f" {filesizeformat(memory['maxmemory'])} used).",
                "redis-cli CONFIG SET maxmemory (a larger value; CONFIG RESETSTAT counts anew)",
            )


@rule("D020", "warning", "Sessions can be lost", check="W007")
def _sessions(patient: Patient) -> Iterator[Evidence]:
    engine = settings.SESSION_ENGINE
    store = importlib.import_module(engine).SessionStore
    backend = settings.CACHES.get(settings.SESSION_CACHE_ALIAS, {}).get("BACKEND", "")
    if issubclass(store, cache.SessionStore):
        yield (
            f"SESSION_ENGINE is {engine}: what the cache loses or evicts is logged out.",
            'SESSION_ENGINE = "cartrita_search.sessions"',
        )
    elif issubclass(store, cached_db.SessionStore) and backend.endswith("LocMemCache"):
        yield (
            f"Sessions are cached in the memory of each process ({engine}): a logout in one is"
            " not noticed by the others.",
            'SESSION_ENGINE = "django.contrib.sessions.backends.db"',
        )


# --- Operation ---------------------------------------------------------------


@rule("D021", "warning", "The search history is older or larger than it should be")
def _history(patient: Patient) -> Iterator[Evidence]:
    # prune_search_history's setting.
    days = search_settings().metrics_keep_days
    for table in ("search_performance_metrics", "cache_invalidation_log"):
        ((size, old),) = patient.rows(
            sql.SQL(
                "SELECT pg_total_relation_size({name}::regclass), EXISTS (SELECT FROM {table}"
                " WHERE created_at < now() - make_interval(days => {days} + 1))"
            )
            .format(
                name=sql.Literal(f"public.{table}"),
                table=sql.Identifier("public", table),
                days=sql.Literal(days),
            )
            .as_string()
        )
        if old or size > patient.thresholds.history_bytes:
            age = f"holds rows older than {days} days and " if old else ""
            mend = f"manage.py prune_search_history --keep-days {days if old else -(-days // 2)}"
            if not old:  # pruning alone gives nothing back
                mend += f" (then SET lock_timeout = '5s'; VACUUM (FULL, ANALYZE) {table};)"
            yield f"{table} {age}takes {filesizeformat(size)}.", mend


def _require_statistics(patient: Patient) -> None:
    ((sees, role),) = patient.rows(
        "SELECT pg_has_role('pg_read_all_stats', 'USAGE'), current_user::text"
    )
    if not sees:
        grant = sql.SQL("GRANT pg_read_all_stats TO {};").format(sql.Identifier(role))
        raise NotSeen(f"sessions of others are hidden from this role: {grant.as_string()}")


@rule("D022", "warning", "A replica lags behind")
def _replication_lag(patient: Patient) -> Iterator[Evidence]:
    limits = patient.thresholds
    ((is_replica,),) = patient.rows("SELECT pg_is_in_recovery()")
    if is_replica:
        ((age, caught_up, cut_off),) = patient.rows(
            "SELECT extract(epoch FROM clock_timestamp()"
            " - pg_last_xact_replay_timestamp())::float8,"
            " pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn(),"
            # One that reads the log from an archive receives nothing either.
            " pg_last_wal_receive_lsn() IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM pg_stat_wal_receiver)"
        )
        if age is None or age <= limits.lag_seconds:
            return
        if cut_off:
            yield (
                "This replica receives nothing from its primary; the latest that it has is of"
                f" {duration(age)} ago.",
                "SHOW primary_conninfo; (and look at this server's log, and the primary)",
            )
        elif not caught_up:
            yield (
                f"This replica is {duration(age)} behind its primary.",
                "SELECT * FROM pg_stat_activity WHERE backend_xmin IS NOT NULL;",
            )
        return
    if patient.rows("SELECT count(*) FROM pg_stat_replication") == [(0,)]:
        return  # which every role may see
    _require_statistics(patient)
    for name, client, lag, seconds in patient.rows(
        "SELECT application_name, coalesce(host(client_addr), 'local'),"
        " pg_wal_lsn_diff(pg_current_wal_lsn(),"
        " coalesce(replay_lsn, write_lsn, sent_lsn))::bigint,"
        " coalesce(extract(epoch FROM replay_lag), 0)::float8 FROM pg_stat_replication"
        " WHERE state IN ('streaming', 'catchup') ORDER BY 1, 2"
    ):
        if lag > limits.lag_bytes or seconds > limits.lag_seconds:
            yield (
                f"{name} ({client}) is {filesizeformat(lag)} and {duration(seconds)} behind.",
                "SELECT * FROM pg_stat_replication; (and look at that server's load and disk)",
            )


@rule("D023", "warning", "A long transaction holds back vacuum")
def _long_transactions(patient: Patient) -> Iterator[Evidence]:
    _require_statistics(patient)
    limit = patient.thresholds.transaction_seconds
    for pid, user, application, state, age in patient.rows(
        "SELECT pid, coalesce(usename, backend_type), coalesce(nullif(application_name, ''),"
        " 'unnamed'), state, extract(epoch FROM clock_timestamp() - xact_start)::float8"
        " FROM pg_stat_activity WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)"
        " AND pid <> pg_backend_pid() AND backend_type <> 'autovacuum worker'"
        " AND datname = current_database()"
        " AND xact_start < clock_timestamp() - make_interval(secs => %s) ORDER BY xact_start",
        [limit],
    ):
        yield (
            f"pid {pid} ({user}, {application}), {state}, since {duration(age)}.",
            "manage.py cleanup_stuck_queries --all-tables",
        )
    for gid, age in patient.rows(
        "SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8"
        " FROM pg_prepared_xacts WHERE database = current_database()"
        " AND prepared < clock_timestamp() - make_interval(secs => %s) ORDER BY prepared",
        [limit],
    ):
        yield (
            f"The prepared transaction {gid}, since {duration(age)}.",
            f"ROLLBACK PREPARED {sql.Literal(gid).as_string()}; (or COMMIT PREPARED)",
        )


@rule("D024", "warning", "shared_buffers is smaller than the hot indexes")
def _shared_buffers(patient: Patient) -> Iterator[Evidence]:
    ((hot, buffers),) = patient.rows(
        "SELECT coalesce(sum(pg_relation_size(i.oid)), 0)::bigint,"
        " pg_size_bytes(current_setting('shared_buffers')) FROM pg_index AS x"
        " JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_am AS a ON a.oid = i.relam"
        " WHERE x.indrelid IN (to_regclass('public.embeddings'),"
        " to_regclass('public.search_documents'))"
        " AND a.amname IN ('hnsw', 'ivfflat', 'gin')"
    )
    if hot > patient.thresholds.hot_share * buffers:
        yield (
            f"The vector and keyword indexes take {filesizeformat(hot)}, shared_buffers"
            f" {filesizeformat(buffers)}: searches read from disk.",
            f"ALTER SYSTEM SET shared_buffers = '{-(-hot * 5 // 4 >> 20)}MB'; (and restart)",
        )


@rule("D025", "warning", "The limit of connections is near")
def _connections(patient: Patient) -> Iterator[Evidence]:
    ((used, most),) = patient.rows(
        "SELECT sum(numbackends)::integer, current_setting('max_connections')::integer"
        " - current_setting('superuser_reserved_connections')::integer"
        " - coalesce(current_setting('reserved_connections', true), '0')::integer"
        " FROM pg_stat_database"
    )
    if used > patient.thresholds.connections_share * most:
        yield (
            f"{used} of {most} connections are in use.",
            "SELECT usename, application_name, state, count(*) FROM pg_stat_activity"
            " GROUP BY 1, 2, 3 ORDER BY 4 DESC; (then a pooler, or fewer workers)",
        )


# --- What the site's processes have met ---------------------------------------


@rule("D026", "warning", "Searches went past Redis")
def _searches_past_redis(patient: Patient) -> Iterator[Evidence]:
    # Breakers are in the processes that search; what these did is in the record of searches.
    minutes = patient.thresholds.redis_minutes
    ((searches, past, failure, age),) = patient.rows(
        "SELECT count(*), count(failure),"
        " (array_agg(failure ORDER BY created_at DESC) FILTER (WHERE failure IS NOT NULL))[1],"
        " extract(epoch FROM clock_timestamp()"
        " - max(created_at) FILTER (WHERE failure IS NOT NULL))::float8"
        " FROM (SELECT created_at, metadata ->> 'redis_failure' AS failure"
        " FROM search_performance_metrics"
        " WHERE created_at > now() - make_interval(mins => %s)) AS recent",
        [minutes],
    )
    if past:
        yield (
            f"{past} of {searches} searches in the last {minutes} minutes went past Redis: the"
            f" breaker was open. The latest {duration(max(0.0, age))} ago, after a {failure}.",
            _mends_redis(failure),
        )
