"""Search weights of v1's people, of the former table `retrieval_configs`, in one statement."""

from __future__ import annotations

from django.db import DEFAULT_DB_ALIAS, connections
from psycopg import sql

from ..errors import InvalidArgument
from .tables import EXAMPLES, INTEGERS, Outcome, Table, moment

#: Where the adoption of a v1 database keeps the former table.
OLD_CONFIGS = "retrieval_configs_v1"

_SKIPPED = {"older": "an older duplicate: the newest of the name comes"}
_ADJUSTED = {
    "scaled": "the weights did not sum to 1: scaled",
    "weights": "no usable weights: 0.7 and 0.3",
    "limits": "results or threshold out of range: brought into it",
    "inactive": "another one is the person's active one: comes as inactive",
}

#: NaN is above all numbers here, so that it is in no interval.
_BRING = sql.SQL("""
    WITH v1 AS (
        SELECT {user_id}::bigint AS user_id, coalesce(nullif({name}::text, ''), 'default') AS name,
            {vector}::float8 AS v, {keyword}::float8 AS k, coalesce({rerank}, false) AS rerank,
            {results}::bigint AS results, {threshold}::float8 AS threshold,
            coalesce({active}, true) AS active, {created_at} AS created_at,
            {updated_at} AS updated_at, {id}::text AS id, {id} AS key
        FROM {table} AS t
    ),
    numbered AS (
        SELECT v.*,
            row_number() OVER (
                PARTITION BY v.user_id, v.name
                ORDER BY v.active DESC, v.updated_at DESC NULLS LAST, v.key DESC
            ) AS nth,
            coalesce(v.v BETWEEN 0 AND 1e9 AND v.k BETWEEN 0 AND 1e9 AND v.v + v.k > 0, false)
                AS usable,
            EXISTS (
                SELECT FROM retrieval_configs AS c
                WHERE c.user_id IS NOT DISTINCT FROM v.user_id AND c.config_name = v.name
            ) AS there
        FROM v1 AS v
    ),
    judged AS MATERIALIZED (
        SELECT n.*,
            n.active AND NOT EXISTS (
                SELECT FROM retrieval_configs AS c
                WHERE c.user_id IS NOT DISTINCT FROM n.user_id AND c.is_active
            )
            AND row_number() OVER (
                PARTITION BY n.user_id, n.active AND n.nth = 1
                ORDER BY n.updated_at DESC NULLS LAST, n.key DESC
            ) = 1 AS becomes_active
        FROM numbered AS n
    )
""")
_WRITE = sql.SQL("""
    , written AS (
        INSERT INTO retrieval_configs (
            user_id, config_name, vector_weight, keyword_weight, rerank_enabled, max_results,
            similarity_threshold, is_active, created_at, updated_at
        )
        SELECT j.user_id, j.name, j.v / j.total, j.k / j.total, j.rerank,
            least(greatest(coalesce(j.results, 10), 1), 1000),
            CASE
                WHEN j.threshold BETWEEN 0 AND 1 THEN j.threshold
                WHEN j.threshold > 1 AND j.threshold <> 'NaN' THEN 1
                ELSE 0
            END,
            j.becomes_active, coalesce(j.created_at, now()), coalesce(j.updated_at, now())
        FROM (
            SELECT u.*, CASE WHEN abs(u.v + u.k - 1) <= 1e-6 THEN 1 ELSE u.v + u.k END AS total
            FROM (
                SELECT x.user_id, x.name, x.rerank, x.results, x.threshold, x.becomes_active,
                    x.created_at, x.updated_at,
                    CASE WHEN x.usable THEN x.v ELSE 0.7 END AS v,
                    CASE WHEN x.usable THEN x.k ELSE 0.3 END AS k
                FROM judged AS x
                WHERE x.nth = 1 AND NOT x.there
            ) AS u
        ) AS j
    )
""")
_REPORT = sql.SQL("""
    SELECT r.reason, count(*), (array_agg(j.id ORDER BY j.key))[:%(examples)s]
    FROM judged AS j
    CROSS JOIN LATERAL (
        SELECT CASE WHEN j.nth > 1 THEN 'older' WHEN j.there THEN 'there' ELSE 'brought' END
        UNION ALL
        SELECT x.reason
        FROM (
            VALUES
                ('scaled', j.usable AND abs(j.v + j.k - 1) > 1e-6),
                ('weights', NOT j.usable),
                ('limits', j.results NOT BETWEEN 1 AND 1000 OR j.threshold NOT BETWEEN 0 AND 1),
                ('inactive', j.active AND NOT j.becomes_active)
        ) AS x (reason, holds)
        WHERE x.holds AND j.nth = 1 AND NOT j.there
    ) AS r (reason)
    GROUP BY r.reason
""")


def bring_weights(
    table: Table, *, dry_run: bool = False, using: str = DEFAULT_DB_ALIAS
) -> Outcome:
    """Bring v1's search weights over, in the caller's transaction.

    A person's configuration of a name that is there already stays as it is. Weights
    that do not sum to 1 are scaled, and of several active ones the newest stays active.
    """
    outcome = Outcome("retrieval_configs")
    parts = [_bring(table), _REPORT] if dry_run else [_bring(table), _WRITE, _REPORT]
    with connections[using].cursor() as cursor:
        if not dry_run:
            # Nobody makes another configuration the active one in between.
            cursor.execute("LOCK TABLE retrieval_configs IN SHARE ROW EXCLUSIVE MODE")
        cursor.execute(sql.Composed(parts), {"examples": EXAMPLES})
        for reason, count, keys in cursor.fetchall():
            if reason == "brought":
                outcome.brought = count
            elif reason == "there":
                outcome.unchanged = count
            elif reason in _SKIPPED:
                outcome.note(outcome.skipped, _SKIPPED[reason], count, keys)
            else:
                outcome.note(outcome.adjusted, _ADJUSTED[reason], count, keys)
    return outcome


def _bring(table: Table) -> sql.Composed:
    if not table.has("user_id", INTEGERS) or not table.has("id"):
        raise InvalidArgument(
            f"{table.name} has no id, or no integer user_id.", "Nothing was changed."
        )
    numbers = {"float4", "float8", "numeric", *INTEGERS}
    return _BRING.format(
        table=table.identifier,
        id=sql.SQL("t.id"),
        user_id=sql.SQL("t.user_id"),
        name=_column(table, "config_name", {"text", "varchar"}),
        vector=_column(table, "vector_weight", numbers),
        keyword=_column(table, "keyword_weight", numbers),
        rerank=_column(table, "rerank_enabled", {"bool"}),
        results=_column(table, "max_results", INTEGERS),
        threshold=_column(table, "similarity_threshold", numbers),
        active=_column(table, "is_active", {"bool"}),
        created_at=moment(table, ("created_at",)),
        updated_at=moment(table, ("updated_at", "created_at")),
    )


def _column(table: Table, name: str, kinds: set[str]) -> sql.Composable:
    return sql.Identifier("t", name) if table.has(name, kinds) else sql.SQL("NULL")
