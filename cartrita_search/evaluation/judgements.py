"""Judged queries: a BEIR-style folder, or a file of judgements on the live corpus.

Everything is read and checked before anything is done with it, and a file or line
that cannot be used raises `UnreadableInput` naming it. Corpora are read twice, and
never held in memory.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from django.contrib.auth import get_user_model
from django.db import connections
from numpy.typing import NDArray

from ..errors import UnreadableInput, search_errors

_NOTHING_DONE = "Nothing was evaluated."

_NEVER_TEXT = re.compile("[\x00\ud800-\udfff]")

#: trec_eval counts the documents of each grade, so its memory grows with the highest.
MAX_GRADE = 1000

#: `source_table` of a folder's documents.
SOURCE = "evaluation"


class Key(NamedTuple):
    """What a judgement is about: a chunk, or (without ``chunk_index``) a whole source row."""

    source_table: str
    source_id: str
    chunk_index: int | None = None


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query and its judgements: a grade above 0 is relevant, more is better."""

    text: str
    grades: dict[Key, int]
    #: Whose search it is: their documents and shared ones. None: everybody's.
    user: int | None = None


@dataclass(frozen=True, slots=True)
class Judgements:
    """Judged queries that can be evaluated, and what was left out."""

    queries: list[JudgedQuery]
    #: Queries without a relevant document; judgements that name an unknown query or document.
    left_out: dict[str, int]

    @property
    def count(self) -> int:
        """How many judgements there are."""
        return sum(len(query.grades) for query in self.queries)


class CorpusDocument(NamedTuple):
    """One document of a folder's corpus."""

    id: str
    title: str
    text: str


class Vectors(NamedTuple):
    """Vectors beside a corpus or its queries: `ids` name the rows of `values`."""

    ids: list[str]
    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Collection:
    """A BEIR-style folder: corpus, judged queries, and the vectors of both, if there are any."""

    folder: Path
    documents: int
    judgements: Judgements
    #: Row of ``document_vectors`` by document id; both empty without vectors.
    rows: Mapping[str, int] = field(default_factory=dict)
    document_vectors: NDArray[Any] | None = None
    #: Vectors of ``judgements.queries``, in their order.
    query_vectors: NDArray[Any] | None = None


# --- A folder ---------------------------------------------------------------


def read_collection(folder: Path) -> Collection:
    """The folder, checked from end to end but for the corpus's texts.

    It holds ``corpus.jsonl`` (or ``.gz``), ``queries.jsonl``, ``qrels.tsv`` or
    ``qrels/test.tsv``, and either no vectors or all of ``corpus_emb.npy``,
    ``corpus_ids.json``, ``query_emb.npy`` and ``query_ids.json``.
    """
    if not folder.is_dir():
        raise UnreadableInput(f"{folder}: there is no such folder.", _NOTHING_DONE)
    documents = {document.id for document in read_corpus(folder)}
    texts = read_queries(folder)
    grades: dict[str, dict[Key, int]] = {}
    left_out = {"queries": 0, "judgements": 0}
    for query_id, judged in read_qrels(folder).items():
        known = {
            Key(SOURCE, document_id): grade
            for document_id, grade in judged.items()
            if query_id in texts and document_id in documents
        }
        left_out["judgements"] += len(judged) - len(known)
        if any(grade > 0 for grade in known.values()):
            grades[query_id] = known
    left_out["queries"] = len(texts) - len(grades)
    ids = [query_id for query_id in texts if query_id in grades]
    if not ids:
        raise UnreadableInput(
            f"{_qrels_file(folder)}: no query of queries.jsonl has a relevant document in the "
            "corpus.",
            _NOTHING_DONE,
        )
    judgements = Judgements([JudgedQuery(texts[key], grades[key]) for key in ids], left_out)
    vectors = _read_both_vectors(folder)
    if vectors is None:
        return Collection(folder, len(documents), judgements)

    of_documents, of_queries = vectors
    _check_ids(folder / "corpus_ids.json", of_documents.ids, documents, "the corpus")
    _check_ids(folder / "query_ids.json", of_queries.ids, texts.keys(), "queries.jsonl")
    rows = {query_id: row for row, query_id in enumerate(of_queries.ids)}
    return Collection(
        folder,
        len(documents),
        judgements,
        {document_id: row for row, document_id in enumerate(of_documents.ids)},
        of_documents.values,
        of_queries.values[[rows[key] for key in ids]],
    )


def read_corpus(folder: Path) -> Iterator[CorpusDocument]:
    """The documents of ``corpus.jsonl`` or ``corpus.jsonl.gz``, in its order."""
    seen: set[str] = set()
    for where, record in _records(_existing(folder, "corpus.jsonl", "corpus.jsonl.gz")):
        document_id = _id(where, record, "_id")
        if document_id in seen:
            raise UnreadableInput(
                f'{where}: the document "{document_id}" is there twice.', _NOTHING_DONE
            )
        seen.add(document_id)
        title = _text(where, record, "title") if record.get("title") is not None else ""
        yield CorpusDocument(document_id, title, _text(where, record, "text"))


def read_queries(folder: Path) -> dict[str, str]:
    """The texts of ``queries.jsonl`` by query id, in its order."""
    texts: dict[str, str] = {}
    for where, record in _records(_existing(folder, "queries.jsonl")):
        query_id = _id(where, record, "_id")
        if query_id in texts:
            raise UnreadableInput(
                f'{where}: the query "{query_id}" is there twice.', _NOTHING_DONE
            )
        texts[query_id] = _text(where, record, "text")
    return texts


def read_qrels(folder: Path) -> dict[str, dict[str, int]]:
    """Grades by query id and document id, from tab-separated lines of query, document, grade.

    The first line may be a header.
    """
    path = _qrels_file(folder)
    grades: dict[str, dict[str, int]] = {}
    for number, (where, line) in enumerate(_lines(path)):
        fields = line.split("\t") if "\t" in line else line.split()
        if len(fields) != 3:
            raise UnreadableInput(
                f"{where}: query, document and grade are expected, separated by tabs; "
                f"there are {len(fields)} fields.",
                _NOTHING_DONE,
            )
        query_id, document_id, grade = fields
        if number == 0 and not _is_whole(grade):
            continue
        _judge(where, grades.setdefault(query_id, {}), document_id, grade)
    return grades


def read_vectors(folder: Path, what: str) -> Vectors:
    """``<what>_emb.npy`` and the ids of its rows in ``<what>_ids.json``; what: corpus, query.

    Checked: as many rows as ids, floats, finite, none zero. Mapped, not read into memory.
    """
    path, ids_path = folder / f"{what}_emb.npy", folder / f"{what}_ids.json"
    try:
        ids = json.loads(ids_path.read_bytes())
    except (OSError, ValueError) as error:
        raise UnreadableInput(f"{ids_path}: {_reason(error)}", _NOTHING_DONE) from error
    if not isinstance(ids, list):
        raise UnreadableInput(f"{ids_path}: a list of ids is expected.", _NOTHING_DONE)
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        # An array of objects, which vectors of different lengths make, is a ValueError.
        raise UnreadableInput(
            f"{path}: not an array of vectors of one length: {_reason(error)}", _NOTHING_DONE
        ) from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f":
        raise UnreadableInput(
            f"{path}: a two-dimensional array of floats is expected, a row a vector.",
            _NOTHING_DONE,
        )
    if len(values) != len(ids):
        raise UnreadableInput(
            f"{path}: {len(values)} vectors, but {ids_path.name} names {len(ids)}.", _NOTHING_DONE
        )
    for start in range(0, len(values), 10_000):
        part = np.asarray(values[start : start + 10_000], dtype=np.float32)
        for broken, problem in (
            (~np.isfinite(part).all(axis=1), "holds NaN or infinity"),
            (~part.any(axis=1), "is zero"),
        ):
            if broken.any():
                row = start + int(np.argmax(broken))
                raise UnreadableInput(
                    f'{path}: row {row}, of "{ids[row]}", {problem}.', _NOTHING_DONE
                )
    return Vectors([str(key) for key in ids], values)


def _read_both_vectors(folder: Path) -> tuple[Vectors, Vectors] | None:
    names = ("corpus_emb.npy", "corpus_ids.json", "query_emb.npy", "query_ids.json")
    missing = [name for name in names if not (folder / name).is_file()]
    if {"corpus_emb.npy", "query_emb.npy"} <= set(missing):
        return None
    if missing:
        raise UnreadableInput(
            f"{folder / missing[0]}: there is no such file beside the other vectors.",
            "Nothing was evaluated. Without any of them the configured embedder embeds.",
        )
    documents, queries = read_vectors(folder, "corpus"), read_vectors(folder, "query")
    dimensions = documents.values.shape[1], queries.values.shape[1]
    if dimensions[0] != dimensions[1]:
        raise UnreadableInput(
            f"{folder / 'query_emb.npy'}: vectors of {dimensions[1]} dimensions, but "
            f"those of corpus_emb.npy have {dimensions[0]}.",
            _NOTHING_DONE,
        )
    return documents, queries


def _check_ids(path: Path, ids: list[str], expected: Set[str], where: str) -> None:
    """That the vectors are of just what is there, each once."""
    named = Counter(ids)
    problems = (
        (f"is not in {where}", named.keys() - expected),
        (f"of {where} has no vector", expected - named.keys()),
        ("is there twice", {key for key, times in named.items() if times > 1}),
    )
    for problem, odd in problems:
        if odd:
            raise UnreadableInput(f'{path}: "{min(odd)}" {problem}.', _NOTHING_DONE)


def _qrels_file(folder: Path) -> Path:
    return _existing(folder, "qrels.tsv", "qrels/test.tsv")


def _existing(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UnreadableInput(
        f"{folder}: there is no {' and no '.join(names)} in it.",
        f"{_NOTHING_DONE} A folder has corpus.jsonl, queries.jsonl and qrels.tsv, as BEIR has.",
    )


# --- Judgements on the live corpus --------------------------------------------


def read_judgements(path: Path, using: str) -> Judgements:
    """Judgements on documents of the database `using`.

    A file ``.jsonl`` has an object a line with ``query``, ``source_table``,
    ``source_id``, ``grade`` and, where wanted, ``chunk_index`` and ``user`` (name or
    id). A file ``.tsv`` has the same as columns, named in its first line; there are no
    quotes in it.
    """
    if path.suffix not in {".jsonl", ".tsv"}:
        raise UnreadableInput(f"{path}: a file .jsonl or .tsv is expected.", _NOTHING_DONE)
    user_id = cache(_user_id)
    grades: dict[tuple[str, int | None], dict[Key, int]] = {}
    for where, record in (_records if path.suffix == ".jsonl" else _tsv_records)(path):
        chunk, user = record.get("chunk_index"), record.get("user")
        if chunk in (None, ""):
            chunk = None
        elif not _is_whole(chunk):
            raise UnreadableInput(f"{where}: chunk_index is not a whole number.", _NOTHING_DONE)
        key = Key(
            _text(where, record, "source_table"),
            _id(where, record, "source_id"),
            None if chunk is None else int(chunk),
        )
        person = None
        if user not in (None, ""):
            person = user_id(_id(where, record, "user"), using)
            if person is None:
                raise UnreadableInput(f"{where}: there is no user {user!r}.", _NOTHING_DONE)
        text = _text(where, record, "query")
        _judge(where, grades.setdefault((text, person), {}), key, record.get("grade"))

    unknown = _unknown({key for judged in grades.values() for key in judged}, using)
    queries = []
    for (text, person), judged in grades.items():
        known = {key: grade for key, grade in judged.items() if key not in unknown}
        if any(grade > 0 for grade in known.values()):
            queries.append(JudgedQuery(text, known, person))
    if not queries:
        raise UnreadableInput(
            f"{path}: no query has a relevant document in the database.", _NOTHING_DONE
        )
    return Judgements(
        queries,
        {
            "queries": len(grades) - len(queries),
            "judgements": sum(key in unknown for judged in grades.values() for key in judged),
        },
    )


def _unknown(keys: set[Key], using: str) -> set[Key]:
    """Those of the keys that name no document."""
    ordered = list(keys)
    with search_errors(), connections[using].cursor() as cursor:
        cursor.execute(
            """
            SELECT j.position
            FROM unnest(%s::text[], %s::text[], %s::integer[])
                WITH ORDINALITY AS j (source_table, source_id, chunk_index, position)
            WHERE NOT EXISTS (
                SELECT FROM search_documents AS d
                WHERE d.source_table = j.source_table AND d.source_id = j.source_id
                    AND d.chunk_index = coalesce(j.chunk_index, d.chunk_index))
            """,
            [list(column) for column in zip(*ordered, strict=True)] or [[], [], []],
        )
        return {ordered[position - 1] for (position,) in cursor.fetchall()}


def _user_id(name_or_id: str, using: str) -> int | None:
    users = get_user_model()._default_manager.using(using)
    user = users.filter(**{get_user_model().USERNAME_FIELD: name_or_id}).first()
    if user is None and name_or_id.isdecimal():
        user = users.filter(pk=name_or_id).first()
    return None if user is None else user.pk


# --- Lines ------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, each with its place, as ``file: line 7``."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield f"{path}: line {number}", text
    except UnicodeDecodeError as error:
        raise UnreadableInput(f"{path}: line {number} is not UTF-8.", _NOTHING_DONE) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableInput(f"{path}: {_reason(error)}", _NOTHING_DONE) from error


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnreadableInput(f"{where} is not JSON: {error}.", _NOTHING_DONE) from error
        if not isinstance(record, dict):
            raise UnreadableInput(f"{where}: a JSON object is expected.", _NOTHING_DONE)
        yield where, record


def _tsv_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    names: list[str] = []
    for where, line in _lines(path):
        values = line.split("\t")
        if not names:
            names = values
        elif len(values) != len(names):
            raise UnreadableInput(
                f"{where}: {len(values)} columns, but the first line names {len(names)}.",
                _NOTHING_DONE,
            )
        else:
            yield where, dict(zip(names, values, strict=True))


def _id(where: str, record: dict[str, Any], name: str) -> str:
    """A key, which some collections write as a number."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise UnreadableInput(f'{where}: there is no id under "{name}".', _NOTHING_DONE)
    return _text(where, {name: str(value)}, name)


def _text(where: str, record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise UnreadableInput(f'{where}: there is no text under "{name}".', _NOTHING_DONE)
    if _NEVER_TEXT.search(value):
        raise UnreadableInput(
            f'{where}: "{name}" holds NUL or half a surrogate pair, which no text can.',
            _NOTHING_DONE,
        )
    return value


def _judge(where: str, judged: dict[Any, int], key: Any, grade: Any) -> None:
    if not _is_whole(grade) or int(grade) > MAX_GRADE:
        raise UnreadableInput(
            f"{where}: the grade is not a whole number up to {MAX_GRADE}.", _NOTHING_DONE
        )
    if judged.setdefault(key, int(grade)) != int(grade):
        raise UnreadableInput(
            f"{where}: this document was graded {judged[key]} for this query before.",
            _NOTHING_DONE,
        )


def _is_whole(value: object) -> bool:
    """Whether int() takes it, and PostgreSQL's integer too."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return False
    return re.fullmatch(r"[+-]?\d{1,9}", str(value)) is not None


def _reason(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return f"{reason or error or type(error).__name__}.".replace("..", ".")
