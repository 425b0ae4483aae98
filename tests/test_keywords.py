"""BM25: vectors, queries, statistics and rankings, held against Python's arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from tests import collections_data
from tests.collections_data import needs_shared_data
from tests.conftest import Connect, Manage
from tests.oracle import (
    Bm25,
    inverse_document_frequency,
    lexeme_component,
    query_lexemes,
)
from tests.postgres import row_versions, scalar, upsert, writing_nothing

NOTES = {
    "flutter": ("Wing flutter", "Flutter of a swept wing, and of a wing in a slipstream."),
    "wake": ("", "The wake behind a swept wing bends the slipstream."),
    "heat": ("Heat transfer", "Heat, heat and more heat at the stagnation point."),
    "shock": ("A shock wave", "The shock stands off; behind it the point of stagnation."),
    "tables": ("Tables", "See the tables."),
    "empty": ("", ""),
    "stop": ("The", "of the and it"),
}
FIGURES = {
    "Tabelle": ("Die Tabelle", "Eine Tabelle der Flügel, der Flügel."),
    "Stoß": ("", "Der Stoß steht vor dem Flügel."),
}


@pytest.fixture
def pg(connect: Connect) -> psycopg.Connection:
    """A connection whose one transaction is rolled back: nothing to clean up."""
    return connect(autocommit=False)


def store(
    pg: psycopg.Connection, notes: Mapping[str, tuple[str, str]], language: str = "english"
) -> dict[str, UUID]:
    """Documents without vectors, by COPY; their ids by name."""
    with pg.cursor().copy(
        "COPY search_documents (source_table, source_id, title, content, language) FROM STDIN"
    ) as copy:
        for name, (title, content) in notes.items():
            copy.write_row(("notes", name, title, content, language))
    return dict(pg.execute("SELECT source_id, id FROM search_documents").fetchall())


def refresh(pg: psycopg.Connection) -> dict[str, tuple[Any, ...]]:
    """By language: documents, lexemes, average length, documents rewritten."""
    rows = pg.execute(
        "SELECT language, documents, lexemes, average_length, rewritten "
        "FROM refresh_keyword_statistics()"
    ).fetchall()
    return {language: tuple(figures) for language, *figures in rows}


def keyword_query(
    pg: psycopg.Connection, text: str, language: str | None = None
) -> tuple[dict[int, float] | None, str | None, str | None]:
    """Weights by component, candidates, restriction."""
    row = pg.execute(
        "SELECT terms::text, candidates::text, restriction::text FROM keyword_query(%s, %s)",
        [text, language],
    ).fetchone()
    assert row is not None
    terms, candidates, restriction = row
    return None if terms is None else components(terms), candidates, restriction


def components(sparse_vector: str) -> dict[int, float]:
    """A sparsevec's text form, {1:0.5,7:2}/268435456, as a mapping."""
    entries, dimensions = sparse_vector.split("/")
    assert int(dimensions) == 2**28
    pairs = (entry.split(":") for entry in entries.strip("{}").split(",") if entry)
    return {int(component): float(weight) for component, weight in pairs}


def found(pg: psycopg.Connection, text: str, **named: object) -> list[str]:
    statement = sql.SQL("SELECT source_id FROM hybrid_search(%s, NULL{})").format(
        sql.SQL("").join(sql.SQL(", {} => %s").format(sql.Identifier(name)) for name in named)
    )
    return [name for (name,) in pg.execute(statement, [text, *named.values()]).fetchall()]


def set_setting(pg: psycopg.Connection, name: str, value: object) -> None:
    pg.execute(sql.SQL("UPDATE search_settings SET {} = %s").format(sql.Identifier(name)), [value])


# --- document side ----------------------------------------------------------------


def test_keyword_vectors_are_bm25_weights(pg: psycopg.Connection) -> None:
    store(pg, NOTES)
    store(pg, FIGURES, "german")
    refresh(pg)

    stored: dict[UUID, str] = dict(
        pg.execute("SELECT id, keyword_vector::text FROM search_documents").fetchall()
    )
    for language in ("english", "german"):
        oracle = Bm25(pg, language)
        for key in oracle.frequencies:
            expected = {
                lexeme_component(lexeme): weight for lexeme, weight in oracle.weights(key).items()
            }
            assert components(stored.pop(key)) == pytest.approx(expected, rel=1e-6)
    assert stored == {}


def test_title_words_count_twice(pg: psycopg.Connection) -> None:
    """Worked by hand: "flutter" once in the title and twice in the text is tf 4 of length 6."""
    vector = scalar(
        pg,
        "SELECT keyword_vector(setweight(to_tsvector('english', 'Flutter'), 'A') "
        "|| to_tsvector('english', 'flutter, wings, the flutter of wings'), 3)::text",
    )

    def weight(tf: int) -> float:
        return tf * 2.2 / (tf + 1.2 * (0.4 + 0.6 * 6 / 3))

    assert components(vector) == pytest.approx(
        {lexeme_component("flutter"): weight(4), lexeme_component("wing"): weight(2)}, rel=1e-6
    )


@pytest.mark.parametrize("average_length", [None, 0.0])
def test_without_an_average_every_document_is_of_average_length(
    pg: psycopg.Connection, average_length: float | None
) -> None:
    vector = scalar(
        pg,
        "SELECT keyword_vector(to_tsvector('simple', 'a a b'), %s::float8)::text",
        [average_length],
    )

    assert components(vector) == pytest.approx(
        {lexeme_component("a"): 2 * 2.2 / 3.2, lexeme_component("b"): 1.0}, rel=1e-6
    )


def test_lexeme_components(pg: psycopg.Connection) -> None:
    lexemes = ["wing", "flügel", "翼", "😀", "'", "\\", ""]

    rows = pg.execute(
        "SELECT lexeme_index(lexeme) FROM unnest(%s::text[]) AS lexeme", [lexemes]
    ).fetchall()

    assert [component for (component,) in rows] == [lexeme_component(word) for word in lexemes]


@pytest.mark.parametrize("change", ["title", "content", "language"])
def test_vectors_follow_the_document(pg: psycopg.Connection, change: str) -> None:
    store(pg, {"1": ("Wings", "Tables of wings")})
    refresh(pg)
    value = {"title": "Flutter", "content": "Shock waves", "language": "simple"}[change]

    pg.execute(
        sql.SQL("UPDATE search_documents SET {} = %s").format(sql.Identifier(change)), [value]
    )

    fresh = pg.execute(
        """
        SELECT search_vector = v.value,
            keyword_vector = keyword_vector(
                v.value, (SELECT average_length FROM keyword_corpora WHERE language = d.language))
        FROM search_documents AS d
        CROSS JOIN LATERAL (
            SELECT setweight(to_tsvector(language::regconfig, title), 'A')
                || to_tsvector(language::regconfig, content)
        ) AS v (value)
        """
    ).fetchall()
    assert fresh == [(True, True)]


# --- query side -------------------------------------------------------------------


def test_query_terms_are_occurrences_times_idf(pg: psycopg.Connection) -> None:
    """Of lexemes in many documents, in one, and in none."""
    store(pg, NOTES)
    refresh(pg)
    oracle = Bm25(pg)
    text = "The wing, the wing's flutter, and an autogyro"

    terms, candidates, restriction = keyword_query(pg, text)

    lexemes = query_lexemes(pg, text)
    assert lexemes == {"wing": 2, "flutter": 1, "autogyro": 1}
    assert terms == pytest.approx(
        {
            lexeme_component(lexeme): occurrences
            * inverse_document_frequency(len(NOTES), oracle.document_frequency[lexeme])
            for lexeme, occurrences in lexemes.items()
        },
        rel=1e-6,
    )
    assert candidates == "'autogyro' | 'flutter' | 'wing'"
    assert restriction is None


def test_query_terms_before_any_statistics(pg: psycopg.Connection) -> None:
    store(pg, NOTES)

    terms, candidates, _ = keyword_query(pg, "flutter")

    assert terms == pytest.approx({lexeme_component("flutter"): math.log(2)}, rel=1e-6)
    assert found(pg, "flutter") == ["flutter"]
    assert candidates == "'flutter'"


def test_a_frequency_above_the_count_of_documents_gives_a_finite_weight(
    pg: psycopg.Connection,
) -> None:
    pg.execute("INSERT INTO keyword_corpora VALUES ('english', 2, 5)")
    pg.execute("INSERT INTO keyword_statistics VALUES ('english', 'wing', 9)")

    terms, _, _ = keyword_query(pg, "wing")

    assert terms == pytest.approx({lexeme_component("wing"): math.log(1 + 0.5 / 9.5)}, rel=1e-6)


def frequencies(pg: psycopg.Connection, counts: Mapping[str, int], documents: int) -> None:
    """Statistics as of a corpus of that size, without the corpus."""
    pg.execute("INSERT INTO keyword_corpora VALUES ('simple', %s, 10)", [documents])
    pg.cursor().executemany(
        "INSERT INTO keyword_statistics VALUES ('simple', %s, %s)", list(counts.items())
    )


def test_candidates_are_proposed_rarest_first_within_the_budget(pg: psycopg.Connection) -> None:
    frequencies(pg, {"rare": 40, "seldom": 60, "frequent": 90, "common": 900}, 1000)
    set_setting(pg, "candidate_pool", 10)
    text = "common rare frequent seldom"

    for budget, proposing in [
        (100, "'rare' | 'seldom'"),
        (189, "'rare' | 'seldom'"),
        (190, "'rare' | 'seldom' | 'frequent'"),
        (1090, "'rare' | 'seldom' | 'frequent' | 'common'"),
    ]:
        set_setting(pg, "keyword_candidate_budget", budget)
        terms, candidates, _ = keyword_query(pg, text, "simple")
        assert candidates == proposing
        # Those that propose nobody still score.
        assert set(terms or {}) == {lexeme_component(word) for word in text.split()}


def test_beyond_the_budget_words_propose_until_a_pool_is_full(pg: psycopg.Connection) -> None:
    """The rarest word may be of no document at all, or of very few."""
    frequencies(pg, {"rare": 5, "common": 600, "commoner": 800}, 1000)
    set_setting(pg, "keyword_candidate_budget", 100)
    set_setting(pg, "candidate_pool", 10)

    for text, proposing in [
        ("common", "'common'"),
        ("common commoner", "'common'"),
        ("rare common commoner", "'rare' | 'common'"),
        ("unheard commoner common", "'unheard' | 'common'"),
    ]:
        assert keyword_query(pg, text, "simple")[1] == proposing


def test_of_too_many_words_the_rarest_known_count(pg: psycopg.Connection) -> None:
    frequencies(pg, {"rare": 5, "common": 600, "commoner": 800}, 1000)
    set_setting(pg, "keyword_max_terms", 2)

    terms, _, _ = keyword_query(pg, "commoner unheard common rare unseen", "simple")

    assert set(terms or {}) == {lexeme_component("rare"), lexeme_component("common")}


@pytest.mark.parametrize(
    ("text", "restriction"),
    [
        ("wing flutter", None),
        ('"swept wing" flutter', "'swept' <-> 'wing'"),
        ('"swept wing" "heat transfer"', "'swept' <-> 'wing' & 'heat' <-> 'transfer'"),
        ("wing -flutter", "!'flutter'"),
        ('wing -"heat transfer"', "!( 'heat' <-> 'transfer' )"),
        ('"swept wing" -flutter -shock', "'swept' <-> 'wing' & !'flutter' & !'shock'"),
        # A minus inside a word or by itself is no operator, nor is an empty phrase.
        ("wing-body", None),
        ("wing - body", None),
        ("--", None),
        ('"" wing', None),
        ('"the" -of wing', None),
        ('"wing', None),
    ],
)
def test_phrases_and_negations_restrict(
    pg: psycopg.Connection, text: str, restriction: str | None
) -> None:
    assert keyword_query(pg, text)[2] == restriction


def test_a_negated_word_neither_scores_nor_proposes(pg: psycopg.Connection) -> None:
    terms, candidates, _ = keyword_query(pg, 'wing -flutter -"heat transfer"')

    assert set(terms or {}) == {lexeme_component("wing")}
    assert candidates == "'wing'"


@pytest.mark.parametrize(
    "text", ["", "   ", "the of and", "-flutter", '-"heat transfer"', "!&|()"]
)
def test_text_without_a_lexeme_to_look_for(pg: psycopg.Connection, text: str) -> None:
    store(pg, NOTES)

    assert keyword_query(pg, text)[:2] == (None, None)
    assert found(pg, text) == []


@pytest.mark.parametrize(
    "lexeme", ["it's", "back\\slash", "'", "\\", "a:b", "a & b", "!", "", "é"]
)
def test_quoted_lexemes_are_read_back(pg: psycopg.Connection, lexeme: str) -> None:
    vector = scalar(pg, "SELECT array_to_tsvector(ARRAY[%s || 'x'])::text", [lexeme])

    assert scalar(pg, "SELECT %s::tsvector @@ quote_lexeme(%s || 'x')::tsquery", [vector, lexeme])


# --- rankings ---------------------------------------------------------------------


def test_phrases_and_negations_in_a_search(pg: psycopg.Connection) -> None:
    store(pg, NOTES)
    refresh(pg)

    assert set(found(pg, "wing stagnation")) == {"flutter", "wake", "heat", "shock"}
    assert found(pg, '"stagnation point"') == ["heat"]
    assert found(pg, '"point of stagnation"') == ["shock"]
    assert found(pg, 'wing "swept wing" -flutter') == ["wake"]
    assert found(pg, 'stagnation -"stagnation point"') == ["shock"]
    assert set(found(pg, '"swept wing" heat')) == {"flutter", "wake"}
    assert found(pg, "wing -wing") == []


def test_dotted_names_are_found_by_their_parts_and_numbers_kept(pg: psycopg.Connection) -> None:
    store(pg, {"path": ("pathlib.Path.rglob", ""), "mach": ("", "At the end.Next: Mach 2.5")})

    assert found(pg, "rglob") == found(pg, "Path") == found(pg, "pathlib.Path.rglob") == ["path"]
    assert found(pg, "next") == found(pg, "2.5") == ["mach"]
    assert found(pg, "5") == []


def test_each_language_has_its_own_statistics_and_stems(pg: psycopg.Connection) -> None:
    store(pg, NOTES)
    store(pg, FIGURES, "german")
    refresh(pg)

    assert set(found(pg, "Flügeln", query_language="german")) == set(FIGURES)
    assert found(pg, "Flügeln") == []
    set_setting(pg, "default_language", "german")
    assert set(found(pg, "Flügeln")) == set(FIGURES)


@pytest.mark.parametrize(
    "text",
    ["swept wing flutter", "heat", "the point of stagnation", "slipstream tables wing"],
)
def test_scores_are_those_of_an_exhaustive_bm25(pg: psycopg.Connection, text: str) -> None:
    store(pg, NOTES)
    refresh(pg)
    expected = {key: score for key, score in Bm25(pg).scores(pg, text).items() if score > 0}

    rows = pg.execute(
        "SELECT id, keyword_score, hybrid_score, matched_by FROM hybrid_search(%s, NULL)", [text]
    ).fetchall()

    assert {key: score for key, score, _, _ in rows} == pytest.approx(expected, rel=1e-5)
    assert [key for key, *_ in rows] == sorted(expected, key=lambda key: (-expected[key], key))
    highest = max(expected.values())
    assert [score for _, _, score, _ in rows] == pytest.approx(
        [expected[key] / highest for key, *_ in rows], rel=1e-5
    )
    assert {matched_by for *_, matched_by in rows} == {"keyword"}


@pytest.mark.slow
@needs_shared_data
def test_a_real_corpus_is_ranked_as_by_an_exhaustive_bm25(pg: psycopg.Connection) -> None:
    """Cranfield, every query, with a budget that leaves no candidate out."""
    store(
        pg,
        {
            document.id: (document.title, document.text)
            for document in collections_data.documents("cranfield")
        },
    )
    refresh(pg)
    pg.execute("ANALYZE search_documents")
    set_setting(pg, "keyword_candidate_budget", 10_000_000)
    oracle = Bm25(pg)
    assert _statistics(pg) == {"english": dict(oracle.document_frequency)}

    for query in collections_data.queries("cranfield"):
        text = query.text.replace("-", " ")  # some have " -dash": a negation
        expected = oracle.scores(pg, text)
        best = sorted(expected.values(), reverse=True)[:10]
        rows = pg.execute(
            "SELECT id, keyword_score FROM hybrid_search(%s, NULL)", [text]
        ).fetchall()
        # Of equals either may come first: the score at each rank decides.
        assert [score for _, score in rows] == pytest.approx(best, rel=1e-5)
        assert [expected[key] for key, _ in rows] == pytest.approx(best, rel=1e-5)


# --- statistics -------------------------------------------------------------------


def _statistics(pg: psycopg.Connection) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for language, lexeme, frequency in pg.execute(
        "SELECT language, lexeme, document_frequency FROM keyword_statistics"
    ):
        counts.setdefault(language, {})[lexeme] = frequency
    return counts


def _corpora(pg: psycopg.Connection) -> dict[str, tuple[Any, ...]]:
    rows = pg.execute("SELECT language, documents, average_length FROM keyword_corpora").fetchall()
    return {language: tuple(figures) for language, *figures in rows}


def test_statistics_are_counted_for_each_language(pg: psycopg.Connection) -> None:
    store(pg, NOTES)
    store(pg, FIGURES, "german")

    refreshed = refresh(pg)

    oracles = {language: Bm25(pg, language) for language in ("english", "german")}
    assert _statistics(pg) == {
        language: dict(oracle.document_frequency) for language, oracle in oracles.items()
    }
    assert _corpora(pg) == {
        language: (len(oracle.frequencies), pytest.approx(oracle.average_length))
        for language, oracle in oracles.items()
    }
    assert refreshed == {
        language: (
            len(oracle.frequencies),
            len(oracle.document_frequency),
            pytest.approx(oracle.average_length),
            len(oracle.frequencies),
        )
        for language, oracle in oracles.items()
    }


def test_no_documents(pg: psycopg.Connection) -> None:
    assert refresh(pg) == {}
    assert found(pg, "wing") == []


def test_documents_without_a_single_lexeme(pg: psycopg.Connection) -> None:
    store(pg, {"1": ("", ""), "2": ("the", "of")})

    assert refresh(pg) == {"english": (2, 0, 0.0, 2)}
    assert refresh(pg)["english"][:3] == (2, 0, 0.0)
    assert found(pg, "wing") == []


@pytest.mark.usefixtures("clean_tables")
def test_a_second_refresh_rewrites_nothing(connect: Connect) -> None:
    pg = connect()
    store(pg, NOTES)
    store(pg, FIGURES, "german")
    refresh(pg)
    versions = "SELECT language, lexeme, xmin::text, ctid::text FROM keyword_statistics"
    before = row_versions(pg, "search_documents"), set(pg.execute(versions).fetchall())

    refreshed = refresh(pg)

    assert [rewritten for *_, rewritten in refreshed.values()] == [0, 0]
    assert (row_versions(pg, "search_documents"), set(pg.execute(versions).fetchall())) == before


def test_what_vanished_from_the_corpus_vanishes_from_the_statistics(
    pg: psycopg.Connection,
) -> None:
    store(pg, NOTES)
    store(pg, FIGURES, "german")
    refresh(pg)

    pg.execute("DELETE FROM search_documents WHERE language = 'german' OR source_id = 'heat'")
    refreshed = refresh(pg)

    assert refreshed["german"] == (0, 0, None, 0)
    assert _corpora(pg).keys() == {"english"}
    assert _statistics(pg) == {"english": dict(Bm25(pg).document_frequency)}
    assert "heat" not in _statistics(pg)["english"]
    assert "german" not in refresh(pg)


def test_vectors_are_rewritten_only_when_the_mean_length_moves(pg: psycopg.Connection) -> None:
    """By more than 1 %: below that one average stands for the language, counts move on."""
    store(pg, {str(number): ("", "alpha beta gamma") for number in range(200)})
    assert refresh(pg)["english"] == (200, 3, 3.0, 200)

    store(pg, {"longer": ("", "alpha beta gamma delta")})
    assert refresh(pg)["english"] == (201, 4, 3.0, 0)
    assert _statistics(pg)["english"]["alpha"] == 201
    assert _corpora(pg) == {"english": (201, 3.0)}

    store(pg, {"longest": ("", " ".join(f"word{number}" for number in range(100)))})
    average = (200 * 3 + 4 + 100) / 202
    assert refresh(pg)["english"] == (202, 104, pytest.approx(average), 202)
    expected = Bm25(pg)
    stored = pg.execute("SELECT id, keyword_vector::text FROM search_documents").fetchall()
    assert all(
        sum(components(vector).values()) == pytest.approx(sum(expected.weights(key).values()))
        for key, vector in stored
    )


# --- overlong documents -----------------------------------------------------------


def words(numbers: Iterable[int], stem: str = "word") -> str:
    return " ".join(f"{stem}{number}" for number in numbers)


#: More than 1 MB of lexemes; more than 16,000 of them; a title past its 10,000 characters.
OVERLONG = {
    "megabyte": ("", words(range(60_000), "a" * 20)),
    "distinct": ("", words(range(20_000))),
    "title": (words(range(3000)), "word1"),
}


@pytest.mark.parametrize(
    ("title", "content", "inside"),
    [
        pytest.param(*OVERLONG["megabyte"], "a" * 20 + "1", id="megabyte"),
        pytest.param(*OVERLONG["distinct"], "word1", id="distinct"),
        pytest.param(*OVERLONG["title"], "word1", id="title"),
    ],
)
def test_overlong_documents_are_accepted_and_say_so(
    pg: psycopg.Connection, title: str, content: str, inside: str
) -> None:
    upsert(pg, "1", [1, 0], p_title=title, p_content=content, p_metadata=Jsonb({"k": 1}))
    refresh(pg)

    partial = {"k": 1, "keyword_index": "partial"}
    assert _metadata(pg) == (partial, partial)
    assert scalar(pg, "SELECT content FROM search_documents") == content
    assert found(pg, inside) == ["1"]
    assert 0 < len(components(_keyword_vector(pg))) <= 16_000

    pg.execute("UPDATE search_documents SET title = 'word1', content = ''")
    assert _metadata(pg) == ({"k": 1}, {"k": 1})
    pg.execute("UPDATE search_documents SET title = %s, content = %s", [title, content])
    assert _metadata(pg) == (partial, partial)


def test_the_heaviest_lexemes_of_an_overlong_document_stay(pg: psycopg.Connection) -> None:
    twice = range(0, 16_000, 16)
    store(pg, {"1": ("", f"{words(twice)} {words(range(20_000))}")})
    refresh(pg)

    kept = components(_keyword_vector(pg))

    assert len(kept) == 16_000
    # A tsvector counts positions up to 16,383 only: beyond it no word can occur twice.
    assert {lexeme_component(f"word{number}") for number in twice[:900]} <= kept.keys()


def test_the_database_s_own_note_is_not_taken_from_the_caller(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 0], p_metadata=Jsonb({"keyword_index": "partial", "k": 1}))

    assert _metadata(pg) == ({"k": 1}, {"k": 1})


@pytest.mark.parametrize("word", ["x" * 3000, "é" * 1500, "😀" * 600])
def test_a_word_too_long_for_a_lexeme_is_left_out(pg: psycopg.Connection, word: str) -> None:
    store(pg, {"1": (word, f"flutter {word} wing")})

    assert _metadata(pg) == ({}, None)
    assert found(pg, f"{word} flutter") == ["1"]
    assert found(pg, word) == []


@pytest.mark.usefixtures("clean_tables")
@pytest.mark.parametrize("kind", OVERLONG)
def test_an_unchanged_overlong_document_is_not_written_again(connect: Connect, kind: str) -> None:
    pg = connect()
    title, content = OVERLONG[kind]
    note: dict[str, Any] = {
        "p_title": title,
        "p_content": content,
        "p_metadata": Jsonb({"k": 1}),
    }
    key = upsert(pg, "1", [1, 0], **note)

    with writing_nothing(pg):
        assert upsert(pg, "1", [1, 0], **note) == key


def _metadata(pg: psycopg.Connection) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The document's, and its vector's copy."""
    row = pg.execute(
        "SELECT d.metadata, e.metadata FROM search_documents AS d "
        "LEFT JOIN embeddings AS e ON e.document_id = d.id"
    ).fetchone()
    assert row is not None
    return row


def _keyword_vector(pg: psycopg.Connection) -> str:
    vector: str = scalar(pg, "SELECT keyword_vector::text FROM search_documents")
    return vector


def test_lexemes_that_share_a_component_share_their_weight(pg: psycopg.Connection) -> None:
    """Found by search: 28 bits of the MD5 of these two words are the same."""
    first, second = _collision()
    store(pg, {"both": ("", f"{first} {second} {first}")}, "simple")
    refresh(pg)

    vector = scalar(pg, "SELECT keyword_vector::text FROM search_documents")

    assert components(vector) == pytest.approx({lexeme_component(first): 3 * 2.2 / 4.2}, rel=1e-6)
    assert found(pg, first, query_language="simple") == ["both"]


def _collision() -> tuple[str, str]:
    seen: dict[int, str] = {}
    for number in range(1_000_000):
        word = f"w{number}"
        other = seen.setdefault(lexeme_component(word), word)
        if other != word:
            return other, word
    raise AssertionError("no collision among a million words")


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
def test_the_command_recounts(manage: Manage, connect: Connect) -> None:
    pg = connect()  # another process is to see what is written
    assert "there are none" in manage("refresh_keyword_statistics").stdout
    pg.execute(
        "INSERT INTO search_documents (source_table, source_id, content)"
        " VALUES ('notes', '1', 'wing'), ('notes', '2', 'wing flutter')"
    )
    done = manage("refresh_keyword_statistics")
    assert (done.returncode, done.stdout) == (0, "Documents counted: 2 english.\n"), done.stderr
    assert (
        scalar(pg, "SELECT document_frequency FROM keyword_statistics WHERE lexeme = 'wing'") == 2
    )
