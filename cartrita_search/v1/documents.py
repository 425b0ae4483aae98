"""Documents and vectors of v1 rows: a batch is read, judged and staged by one statement.

Rows go from table to table within the server, so a batch takes no memory here, and a
vector is never written out as numbers. A row that v2 cannot hold is left out with its
reason; a row whose vector alone is unusable comes as a document awaiting one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.db import DEFAULT_DB_ALIAS, connections
from psycopg import sql

from ..errors import DimensionMismatch, InvalidArgument
from ..models import EmbeddingModel
from .tables import (
    EXAMPLES,
    INTEGERS,
    JSON,
    KEYS,
    TEXTS,
    TIMES,
    VECTORS,
    Outcome,
    Table,
    TableMap,
    moment,
)

if TYPE_CHECKING:
    from django.db.backends.utils import CursorWrapper

#: Where the adoption of a v1 database keeps the former table `embeddings`.
OLD_EMBEDDINGS = "embeddings_v1"

#: Why rows, or the vectors of rows, do not come.
REASONS = {
    "key": "the key is empty or too long (500 characters, a table's name 128)",
    "older": "an older duplicate: the newest row of the key comes",
    "parts": "comes by its chunks instead",
    "empty": "neither text nor vector",
    "own": "the row it is of has a vector of its own under this model, which comes",
    "zero": "the vector is zero: it has no direction",
    "length": "the vector's length is outside 0.001 to 60000",
    "dimensions": "the vector's dimension is not the model's",
}
NO_KEY = "the key is NULL"


@dataclass(slots=True, kw_only=True)
class Source:
    """A table whose rows become documents or vectors, under one model."""

    label: str
    table: Table
    key: str
    #: NULL vectors all: no model, and no dimensions.
    model: str | None = None
    dimensions: int | None = None
    #: The source_table of its documents, or all that its rows name.
    fills: list[str]
    rows: int = 0
    vectors: int = 0
    keyless: int = 0
    #: Its documents that are in v2 already; of old `embeddings`, its vectors.
    stored: int = 0
    #: Columns that v2 has no place for, which stay in v1's table alone.
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: Of the batch "picked AS t": the columns that `_STAGE` names.
    select: sql.Composed = field(default_factory=lambda: sql.Composed([]))
    #: Which rows of the table are this source's, besides those after the last key.
    condition: sql.Composable = field(default_factory=lambda: sql.SQL("true"))
    #: Whether v1 says who owns a row, so that nobody is an owner like any other.
    replace_owner: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)
    embedding: str | None = None

    @property
    def checkpoint(self) -> str:
        """Its key in source_checkpoints: another model's run is another run."""
        return f"import_v1 {self.label} {self.model or ''}".strip()


@dataclass(frozen=True, slots=True)
class Staged:
    """What one batch read: how many rows, the last one's key, and what is wrong with some."""

    rows: int
    last_key: str | None
    #: (what is left out: "row" or "vector", reason, count, first keys)
    faults: list[tuple[str, str, int, list[str]]]

    @property
    def left_out(self) -> int:
        """Rows that do not come."""
        return sum(count for what, _, count, _ in self.faults if what == "row")

    def note(self, outcome: Outcome) -> None:
        """Count the faults."""
        for what, reason, count, keys in self.faults:
            counts = outcome.skipped if what == "row" else outcome.vectors_left_out
            outcome.note(counts, REASONS[reason], count, keys)


#: Ties are taken along, so that a key which is not unique loses no row between batches.
_PICK = sql.SQL("""
    WITH picked AS MATERIALIZED (
        SELECT t.* FROM {table} AS t
        WHERE {condition} AND {after}
        ORDER BY t.{key} FETCH FIRST (%(limit)s) ROWS WITH TIES
    ),
    found AS ({select}),
    vectors AS (
        SELECT f.*,
            row_number() OVER (
                PARTITION BY f.source_table, f.source_id
                ORDER BY f.own_fault IS NOT NULL,
                    coalesce(f.title, '') = '' AND f.content = '' AND f.embedding IS NULL,
                    f.modified_at DESC NULLS LAST, f.key DESC
            ) AS nth,
            CASE
                WHEN f.embedding IS NULL THEN NULL
                WHEN vector_dims(f.embedding) <> %(dimensions)s THEN 'dimensions'
                WHEN vector_norm(f.embedding) = 0 THEN 'zero'
                WHEN vector_norm(f.embedding) NOT BETWEEN 1e-3 AND 6e4 THEN 'length'
            END AS vector_fault
        FROM found AS f
    ),
    judged AS MATERIALIZED (
        SELECT v.*,
            CASE
                WHEN length(v.source_table) NOT BETWEEN 1 AND 128
                    OR length(v.source_id) NOT BETWEEN 1 AND 500 THEN 'key'
                WHEN v.own_fault IS NOT NULL THEN v.own_fault
                WHEN v.nth > 1 THEN 'older'
                WHEN coalesce(v.title, '') = '' AND v.content = ''
                    AND (v.embedding IS NULL OR v.vector_fault IS NOT NULL)
                    THEN coalesce(v.vector_fault, 'empty')
            END AS fault
        FROM vectors AS v
    )
""")
#: In the order of the keys as bytes, which is that of every other writer.
_STAGE = sql.SQL("""
    , staged AS (
        INSERT INTO pg_temp.ingest_batch (
            position, source_table, source_id, chunk_index, user_id, title, content, tags,
            metadata, content_hash, embedding, created_at
        )
        SELECT
            row_number() OVER (ORDER BY j.source_table COLLATE "C", j.source_id COLLATE "C"),
            j.source_table, j.source_id, 0, j.user_id, j.title, j.content, j.tags, j.metadata,
            coalesce(
                j.content_hash,
                CASE WHEN j.title IS NOT NULL THEN document_content_hash(j.title, j.content) END
            ),
            CASE WHEN j.vector_fault IS NULL AND %(dimensions)s IS NOT NULL THEN j.embedding END,
            j.created_at
        FROM judged AS j
        WHERE j.fault IS NULL
    )
""")
_REPORT = sql.SQL("""
    SELECT NULL, NULL, count(*),
        ARRAY(SELECT l.key::text FROM judged AS l ORDER BY l.key DESC LIMIT 1)
    FROM judged
    UNION ALL
    SELECT r.what, r.reason, count(*), (array_agg(j.key::text ORDER BY j.key))[:%(examples)s]
    FROM judged AS j
    CROSS JOIN LATERAL (
        VALUES ('row', j.fault), ('vector', CASE WHEN j.fault IS NULL THEN j.vector_fault END)
    ) AS r (what, reason)
    WHERE r.reason IS NOT NULL
    GROUP BY r.what, r.reason
""")


def stage(
    cursor: CursorWrapper, source: Source, *, after: str | None, limit: int, into: bool = True
) -> Staged:
    """Fill the table of `ingest.STAGING` with the rows after that key, ``limit`` or a few more.

    Not ``into`` it: only say what is wrong with them.
    """
    key = sql.Identifier(source.key)
    start: sql.Composable = sql.SQL("t.{} IS NOT NULL").format(key)
    if after is not None:
        type_ = sql.SQL(source.table.columns[source.key].type)
        start = sql.SQL("t.{} > CAST(%(after)s AS {})").format(key, type_)
    pick = _PICK.format(
        table=source.table.identifier,
        condition=source.condition,
        after=start,
        key=key,
        select=source.select,
    )
    cursor.execute(
        sql.Composed([pick, _STAGE, _REPORT] if into else [pick, _REPORT]),
        {
            "dimensions": source.dimensions,
            "after": after,
            "limit": limit,
            "examples": EXAMPLES,
            **source.parameters,
        },
    )
    (_, _, rows, last), *faults = cursor.fetchall()
    return Staged(rows, last[0] if last else None, faults)


# --- Sources of documents -----------------------------------------------------

_DOCUMENTS = sql.SQL("""
    SELECT t.{key} AS key, {source_table}::text AS source_table, t.{key}::text AS source_id,
        {owner}::bigint AS user_id, {title} AS title, {content} AS content, {tags} AS tags,
        {metadata} AS metadata, NULL::text AS content_hash, {created_at} AS created_at,
        {modified_at} AS modified_at, {embedding}::vector AS embedding,
        {own_fault}::text AS own_fault
    FROM picked AS t {whole}
""")


def document_source(given: TableMap, table: Table, others: dict[str, Table]) -> Source:
    """A table's rows as documents. Raises `InvalidArgument` where they cannot be."""
    name = given.table
    if not table.has(given.key, KEYS):
        raise InvalidArgument(
            f"{name} has no column {given.key} that could be a key (an integer, uuid or text).",
            "Nothing was changed.",
        )
    embedding = given.embedding if table.has(given.embedding, VECTORS) else None
    if given.given:
        _require_columns(given, table)
    source = Source(label=name, fills=[name], table=table, key=given.key, embedding=embedding)
    if table.has(given.embedding) and not embedding:
        type_ = table.columns[given.embedding or ""].type
        source.notes.append(f"{given.embedding} is of type {type_}: no vector comes")
    whole = _joined(given.whole, table, others, of_part=True)
    if given.whole and whole is None:
        source.notes.append(f"no {given.whole[0]} to go with: its rows come without a title")
    parts = _joined(given.parts, table, others, of_part=False)
    content = [column for column in given.content if table.has(column)]
    if not content:
        source.notes.append(f"no text: it has no column {' or '.join(given.content) or 'named'}")
    source.select = _DOCUMENTS.format(
        source_table=sql.Literal(name),
        key=sql.Identifier(given.key),
        owner=_owner(given, table, whole, source),
        title=_text(table, given.title, "t", whole),
        content=sql.SQL("concat_ws(E'\\n\\n', {})").format(
            sql.SQL(", ").join(
                sql.SQL("nullif({}::text, '')").format(sql.Identifier("t", column))
                for column in content
            )
            if content
            else sql.SQL("NULL")
        ),
        tags=_tags(table, given.tags),
        metadata=_metadata(table, given, whole),
        created_at=moment(table, given.created_at),
        modified_at=moment(table, ("updated_at", *given.created_at)),
        embedding=sql.Identifier("t", embedding) if embedding else sql.SQL("NULL"),
        own_fault=sql.SQL(
            "CASE WHEN EXISTS (SELECT FROM {} AS c WHERE c.{} = t.id) THEN 'parts' END"
        ).format(parts.identifier, sql.Identifier(given.parts[1]))
        if parts and given.parts
        else sql.SQL("NULL"),
        whole=sql.SQL("LEFT JOIN {} AS w ON w.id = t.{}").format(
            whole.identifier, sql.Identifier(given.whole[1])
        )
        if whole and given.whole
        else sql.SQL(""),
    )
    kinds = _kinds(given)
    source.left = [name for name in table.columns if not table.has(name, kinds.get(name, set()))]
    return source


def _joined(
    link: tuple[str, str] | None, table: Table, others: dict[str, Table], *, of_part: bool
) -> Table | None:
    """The other table of a link, if the part's column and the whole's id can be compared."""
    other = others.get(link[0]) if link else None
    if link is None or other is None:
        return None
    part, whole = (table, other) if of_part else (other, table)
    for kinds in (INTEGERS, {"uuid"}, TEXTS):
        if part.has(link[1], kinds) and whole.has("id", kinds):
            return other
    return None


def _kinds(given: TableMap) -> dict[str, set[str] | None]:
    """The columns that the map names, and the kinds of type of which each is of use."""
    kinds: dict[str | None, set[str] | None] = {
        **dict.fromkeys((given.title, *given.content, *given.keep)),
        given.tags: {f"_{kind}" for kind in TEXTS},
        given.metadata: JSON,
        given.embedding: VECTORS,
        given.owner: INTEGERS,
        **dict.fromkeys(("updated_at", *given.created_at), TIMES),
        given.key: KEYS,
    }
    return {name: kind for name, kind in kinds.items() if name is not None}


def _require_columns(given: TableMap, table: Table) -> None:
    """A map that an operator gave names columns that are there, of a type that will do."""
    for name, kinds in _kinds(given).items():
        if name != "updated_at" and not table.has(name, kinds):
            what = f"has no column {name}"
            if table.has(name):
                what = (
                    f"has its {name} of type {table.columns[name].type}, "
                    f"where {' or '.join(sorted(kinds or ()))} is of use"
                )
            raise InvalidArgument(
                f"{given.table} {what}, which the map names.",
                f"Nothing was changed. Its columns: {', '.join(table.columns)}.",
            )


def _owner(given: TableMap, table: Table, whole: Table | None, source: Source) -> sql.Composable:
    """Whose a row is. What cannot be told is refused: nobody's would be everybody's."""
    owners = []
    for at, alias in ((table, "t"), (whole, "w")):
        if at is None or not at.has(given.owner):
            continue
        if not at.has(given.owner, INTEGERS):
            raise InvalidArgument(
                f"{at.name}.{given.owner} is of type {at.columns[given.owner or ''].type}; an "
                "owner is an integer, and without one a row is shared with everybody.",
                "Nothing was changed.",
            )
        owners.append(sql.Identifier(alias, given.owner or ""))
    if not owners:
        source.notes.append("no owner: its rows are shared with everybody")
        return sql.SQL("NULL")
    return sql.SQL("coalesce({})").format(sql.SQL(", ").join(owners))


def _text(table: Table, name: str | None, alias: str, whole: Table | None) -> sql.Composable:
    texts = [sql.Identifier(alias, name or "")] if table.has(name) else []
    if whole is not None and whole.has(name):
        texts.append(sql.Identifier("w", name or ""))
    return sql.SQL("coalesce({})").format(
        sql.SQL(", ").join([*(sql.SQL("{}::text").format(t) for t in texts), sql.SQL("''")])
    )


def _tags(table: Table, name: str | None) -> sql.Composable:
    if not table.has(name, {f"_{kind}" for kind in TEXTS}):
        return sql.SQL("'{{}}'::text[]").format()
    return sql.SQL("coalesce(array_remove({}::text[], NULL), '{{}}')").format(
        sql.Identifier("t", name or "")
    )


#: What a json value may hold and a jsonb value not: NUL, half a surrogate pair, a number
#: beyond numeric. A value that only looks so is kept as text all the same.
_NO_JSONB = r"\\u(0000|[dD][89a-fA-F])|[eE][+-]?\d{4}"


def _json(table: Table, name: str, alias: str) -> sql.Composable:
    """The column as a JSON object; what is none becomes an entry of one."""
    column: sql.Composable = sql.Identifier(alias, name)
    if table.has(name, {"json"}):
        column = sql.SQL(
            "CASE WHEN {0}::text ~ {1} THEN to_jsonb({0}::text) ELSE {0}::jsonb END"
        ).format(column, sql.Literal(_NO_JSONB))
    return sql.SQL(
        "coalesce((SELECT CASE jsonb_typeof(m.value) WHEN 'object' THEN m.value WHEN 'null'"
        " THEN '{{}}' ELSE jsonb_build_object('metadata', m.value) END"
        " FROM (VALUES ({})) AS m (value) WHERE m.value IS NOT NULL), '{{}}')"
    ).format(column)


def _metadata(table: Table, given: TableMap, whole: Table | None) -> sql.Composable:
    """The row's own metadata over the columns that are kept, over the whole's."""
    parts: list[sql.Composable] = [sql.SQL("'{{}}'::jsonb").format()]
    if whole is not None and given.metadata and whole.has(given.metadata, JSON):
        parts.append(_json(whole, given.metadata, "w"))
    kept = [name for name in given.keep if table.has(name)]
    if kept:
        parts.append(
            sql.SQL("jsonb_strip_nulls(jsonb_build_object({}))").format(
                sql.SQL(", ").join(
                    sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier("t", name))
                    for name in kept
                )
            )
        )
    if given.metadata and table.has(given.metadata, JSON):
        parts.append(_json(table, given.metadata, "t"))
    return sql.SQL(" || ").join(parts)


# --- Old embeddings -----------------------------------------------------------

_MODEL_OF_ROW = sql.SQL("coalesce(nullif({}.embedding_model::text, ''), %(unnamed)s)")
_NEWNESS = sql.SQL("(coalesce({0}, '-infinity'), {1}.id)")
_VECTORS = sql.SQL("""
    SELECT t.id AS key, coalesce(t.source_table::text, '') AS source_table,
        coalesce(t.source_id::text, '') AS source_id, NULL::bigint AS user_id,
        CASE WHEN d.id IS NULL THEN '' END AS title, '' AS content, '{{}}'::text[] AS tags,
        {metadata} AS metadata,
        CASE WHEN d.id IS NULL THEN {content_hash} END AS content_hash,
        {created_at} AS created_at, {modified_at} AS modified_at,
        t.embedding::vector AS embedding,
        CASE WHEN n.id IS NOT NULL THEN 'older' {own} END AS own_fault
    FROM picked AS t
    LEFT JOIN search_documents AS d
        ON d.source_table = t.source_table::text AND d.source_id = t.source_id::text
            AND d.chunk_index = 0
    LEFT JOIN (
        SELECT DISTINCT o.id
        FROM picked AS o
        JOIN {table} AS newer
            ON newer.source_table = o.source_table AND newer.source_id = o.source_id
                AND newer.embedding IS NOT NULL AND {newer_model} = %(model)s
                AND {newer_than_o}
    ) AS n ON n.id = t.id
""")
_OWN = sql.SQL("""
    WHEN t.source_table = {name} AND EXISTS (
        SELECT FROM {table} AS own
        WHERE {same} AND vector_dims(own.{embedding}::vector) = %(dimensions)s
            AND vector_norm(own.{embedding}::vector) BETWEEN 1e-3 AND 6e4
    ) THEN 'own'
""")
_NEEDED = {"id", "source_table", "source_id", "embedding"}


def embedding_sources(
    table: Table, documents: Iterable[Source], unnamed: str | None, *, using: str
) -> list[Source]:
    """The former table `embeddings`, a source for each of its models.

    A row attaches its vector to the document of its source_table and source_id; where
    there is none, it makes one without text, as upsert_embedding() does. Of rows for
    the same the newest comes, unless the row of an imported table has a vector itself.
    ``unnamed`` is the model of rows that name none.
    """
    if missing := _NEEDED - set(table.columns):
        raise InvalidArgument(
            f"{table.name} has no column {' and '.join(sorted(missing))}.", "Nothing was changed."
        )
    sources = []
    for model, fills in models_named(table, unnamed or "", using=using).items():
        source = Source(
            label="embeddings",
            fills=fills,
            table=table,
            key="id",
            model=model,
            replace_owner=False,
            embedding="embedding",
            parameters={"model": model, "unnamed": unnamed or ""},
        )
        source.condition = sql.SQL("{} = %(model)s").format(_model_of(table, "t"))
        source.select = _VECTORS.format(
            metadata=_json(table, "metadata", "t")
            if table.has("metadata", JSON)
            else sql.SQL("'{{}}'::jsonb").format(),
            content_hash=sql.SQL("nullif(t.content_hash::text, '')")
            if table.has("content_hash")
            else sql.SQL("NULL"),
            created_at=moment(table, ("created_at",)),
            modified_at=moment(table, ("updated_at", "created_at")),
            own=sql.SQL(" ").join(
                _own_vector(table, document) for document in documents if document.model == model
            ),
            table=table.identifier,
            newer_model=_model_of(table, "newer"),
            newer_than_o=sql.SQL("{} > {}").format(_newness(table, "newer"), _newness(table, "o")),
        )
        sources.append(source)
    return sources


def _model_of(table: Table, alias: str) -> sql.Composable:
    if not table.has("embedding_model"):
        return sql.SQL("%(unnamed)s")
    return _MODEL_OF_ROW.format(sql.SQL(alias))


def _newness(table: Table, alias: str) -> sql.Composable:
    times = [name for name in ("updated_at", "created_at") if table.has(name, TIMES)]
    return _NEWNESS.format(
        sql.SQL(", ").join(sql.Identifier(alias, name) for name in times)
        if times
        else sql.SQL("NULL"),
        sql.SQL(alias),
    )


def _own_vector(table: Table, document: Source) -> sql.Composable:
    if document.embedding is None:
        return sql.SQL("")
    key, of = sql.Identifier("own", document.key), sql.SQL("t.source_id")
    same = document.table.columns[document.key].kind == table.columns["source_id"].kind
    # Of one type the key's index serves; otherwise text is what both have in common.
    form = sql.SQL("{} = {}") if same else sql.SQL("{}::text = {}::text")
    return _OWN.format(
        name=sql.Literal(document.label),
        table=document.table.identifier,
        same=form.format(key, of),
        embedding=sql.Identifier(document.embedding),
    )


def models_named(
    table: Table, unnamed: str = "", *, using: str = DEFAULT_DB_ALIAS
) -> dict[str, list[str]]:
    """The models that the former table `embeddings` names, and the source tables of each.

    Rows that name none are those of the model ``unnamed``.
    """
    with connections[using].cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "SELECT {} AS model, array_agg(DISTINCT t.source_table::text) FROM {} AS t"
                " WHERE t.embedding IS NOT NULL GROUP BY 1 ORDER BY 1"
            ).format(_model_of(table, "t"), table.identifier),
            {"unnamed": unnamed},
        )
        return dict(cursor.fetchall())


# --- Counts and models --------------------------------------------------------


def count(source: Source, *, using: str = DEFAULT_DB_ALIAS) -> None:
    """Fill in how many rows and vectors a source has. Reads the table, but no vector."""
    key = sql.Identifier("t", source.key)
    vector = sql.Identifier("t", source.embedding) if source.embedding else sql.SQL("NULL::text")
    with connections[using].cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "SELECT count(*), count({}), count(*) - count({}) FROM {} AS t WHERE {}"
            ).format(vector, key, source.table.identifier, source.condition),
            source.parameters,
        )
        source.rows, source.vectors, source.keyless = cursor.fetchone()
        if source.replace_owner:
            cursor.execute(
                "SELECT count(*) FROM search_documents WHERE source_table = ANY (%s)",
                [source.fills],
            )
            (source.stored,) = cursor.fetchone()
        else:
            source.stored = stored_vectors(source, using=using)


def stored_vectors(source: Source, *, using: str = DEFAULT_DB_ALIAS) -> int:
    """How many vectors of its source tables are in v2 under its model."""
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM embeddings WHERE embedding_model = %s"
            " AND source_table = ANY (%s)",
            [source.model, source.fills],
        )
        return int(cursor.fetchone()[0])


def find_dimensions(sources: Iterable[Source], *, using: str = DEFAULT_DB_ALIAS) -> None:
    """Fill in the dimensions of each source's model.

    They are the registered model's, else the column's, else those of most vectors of a
    column that has none. Raises `DimensionMismatch` where a column's are not the model's.
    """
    known = dict(EmbeddingModel.objects.using(using).values_list("name", "dimensions"))
    first: dict[str, str] = {}
    for source in sources:
        if source.model is None or source.embedding is None:
            continue
        has = source.table.columns[source.embedding].dimensions
        expected = known.get(source.model)
        if expected is None:
            expected = has or _usual_dimensions(source, using)
            if expected is None:
                continue  # it has no vector
            known[source.model] = expected
            first[source.model] = source.label
        if has is not None and has != expected and source.vectors:
            whose = (
                f"{first[source.model]} has {expected} under the same model"
                if source.model in first
                else f'model "{source.model}" has {expected}'
            )
            raise DimensionMismatch(
                f"The vectors of {source.label} have {has} dimensions, but {whose}.",
                "Nothing was changed. Import tables of another model apart: --tables "
                f"{source.label} --model NAME",
            )
        source.dimensions = expected


def _usual_dimensions(source: Source, using: str) -> int | None:
    column = sql.Identifier("t", source.embedding or "")
    with connections[using].cursor() as cursor:
        cursor.execute(
            sql.SQL(
                "SELECT vector_dims({0}::vector) FROM {1} AS t WHERE {0} IS NOT NULL AND {2}"
                " GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
            ).format(column, source.table.identifier, source.condition),
            source.parameters,
        )
        row = cursor.fetchone()
    return int(row[0]) if row else None
