"""Reading documents from files: what is taken, what is refused, and by which line."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from cartrita_search import files
from cartrita_search.errors import InvalidArgument, UnreadableInput
from cartrita_search.files import DocumentFile, FileOptions, parse_columns
from cartrita_search.ingest import Document


def written(tmp_path: Path, name: str, *lines: str | bytes) -> str:
    """A file of these lines."""
    encoded = [line if isinstance(line, bytes) else line.encode() for line in lines]
    data = b"".join(line + b"\n" for line in encoded)
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def documents(path: str, **options: Any) -> list[Document]:
    """All of them; no line may be refused."""
    found = [item for _, item in DocumentFile(path, FileOptions(source="notes", **options))]
    assert [item for item in found if isinstance(item, UnreadableInput)] == []
    return [item for item in found if isinstance(item, Document)]


def refusals(path: str, **options: Any) -> dict[int, str]:
    """What is said of each line that is refused."""
    file = DocumentFile(path, FileOptions(**{"source": "notes"} | options))
    return {line: str(item) for line, item in file if isinstance(item, UnreadableInput)}


# --- JSON Lines ---------------------------------------------------------------

WHOLE = {
    "source_table": "essays",
    "id": 7,
    "title": "Flight",
    "content": "Wings flutter.",
    "metadata": {"year": 1903, "by": ["Wilbur", "Orville"]},
    "tags": ["wing", "history"],
    "user_id": 12,
    "language": "simple",
    "chunk_index": 2,
    "embedding": [0.5, -1, 2],
}


def test_every_key_of_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", json.dumps(WHOLE))
    ((line, document),) = DocumentFile(path)
    assert line == 1
    assert isinstance(document, Document)
    assert list(document.embedding or []) == [0.5, -1.0, 2.0]
    assert (document.source_table, document.source_id, document.chunk_index) == ("essays", "7", 2)
    assert (document.title, document.content) == ("Flight", "Wings flutter.")
    assert (document.user_id, document.tags) == (12, ["wing", "history"])
    assert (document.language, document.metadata) == ("simple", WHOLE["metadata"])
    assert documents(path)[0].source_table == "notes"


@pytest.mark.parametrize(
    "line",
    [
        {"id": "7"},
        {"_id": 7, "title": None, "metadata": None, "tags": None, "embedding": None},
        {"source_id": "7", "text": "", "user_id": None, "language": None, "chunk_index": None},
        {"id": "7", "language": "", "owner": None, "chunk": 0, "metadata": {}, "tags": []},
    ],
)
def test_what_is_left_out_or_null_is_the_default(tmp_path: Path, line: dict[str, Any]) -> None:
    (document,) = documents(written(tmp_path, "a.jsonl", json.dumps(line)))
    assert document == Document("notes", "7", tags=document.tags, language=document.language)
    assert not document.tags
    assert not document.language


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSONL", "a.jsonl.gz", "a.ndjson.gz"])
def test_names_of_json_lines(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, '{"_id": "1", "text": "é"}', "", "  ", '{"_id": "2"}\r')
    assert [document.source_id for document in documents(path)] == ["1", "2"]
    assert documents(path)[0].content == "é"
    assert [line for line, _ in DocumentFile(path)] == [1, 4]
    assert DocumentFile(path).count_lines() == 4


def test_gzip_is_told_by_its_content(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl.gz", '{"id": 1}')
    named = Path(path).rename(tmp_path / "b.jsonl")
    assert len(documents(str(named))) == 1


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def stdin(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))

    stdin(b'{"id": 1}\n{"id": 2}')
    assert DocumentFile("-").count_lines() is None
    assert [document.source_id for document in documents("-")] == ["1", "2"]
    stdin(gzip.compress(b"id,title\n1,a\n"))
    assert [document.title for document in documents("-", format="csv")] == ["a"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "UTF_8_SIG"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, encoding: str, mark: bytes) -> None:
    path = written(tmp_path, "a.jsonl", mark + '{"id": "ä"}'.encode(), '{"id": 2}')
    assert [d.source_id for d in documents(path, encoding=encoding)] == ["ä", "2"]
    path = written(tmp_path, "a.csv", mark + b"id,title", "ä,b".encode())
    assert [d.source_id for d in documents(path, encoding=encoding)] == ["ä"]


def test_another_encoding(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"id": 1, "text": "für 5 €"}'.encode("cp1252"))
    assert documents(path, encoding="cp1252")[0].content == "für 5 €"
    path = written(tmp_path, "a.csv", "id,text", "1,für 5 €".encode("cp1252"))
    assert documents(path, encoding="cp1252")[0].content == "für 5 €"


def test_a_vector_may_be_its_text(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"id": 1, "embedding": "[0.5,-1e-3, 2]"}')
    (document,) = documents(path)
    assert list(document.embedding or []) == pytest.approx([0.5, -0.001, 2])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1, "title": "a"', "broken JSON at column 23: Expecting ',' delimiter"),
        ("id,title", "broken JSON at column 1"),
        ('{"id": 1, "embedding": [NaN]}', "broken JSON: NaN is no JSON"),
        ('{"id": 1, "metadata": {"a": -Infinity}}', "-Infinity is no JSON"),
        ('{"id": ' + "9" * 5000 + "}", "broken JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"id": 1, "metadata": {"a": ' + "[" * 3000 + "]" * 3000 + "}}", "nested too deeply"),
        ('["id", 1]', "not a JSON object but a list"),
        ("null", "not a JSON object but null"),
        ('"text"', "not a JSON object but text"),
        (b'{"id": "caf\xe9"}', "not utf-8, by byte 12, 0xE9"),
        ("{}", "no id; it goes by id, source_id, _id"),
        ('{"id": ""}', "no id"),
        ('{"id": 1.5}', "id must be text, not a number"),
        ('{"id": true}', "id must be text, not true or false"),
        ('{"id": 1, "title": 3}', "title must be text, not a number"),
        ('{"id": 1, "text": ["a"]}', "content must be text, not a list"),
        ('{"id": 1, "language": {}}', "language must be text, not an object"),
        ('{"id": 1, "metadata": "{}"}', "metadata must be an object, not text"),
        ('{"id": 1, "metadata": [1]}', "metadata must be an object, not a list"),
        ('{"id": 1, "metadata": {"a": 1e999}}', "a number beyond double precision"),
        ('{"id": 1, "tags": "a"}', "tags must be a list of texts, not text"),
        ('{"id": 1, "tags": ["a", 1]}', "tags must be a list of texts, not a number"),
        ('{"id": 1, "user_id": "ada"}', "owner must be an integer, not 'ada'"),
        ('{"id": 1, "user_id": false}', "owner must be an integer, not False"),
        ('{"id": 1, "user_id": 9223372036854775808}', "owner must be an integer"),
        ('{"id": 1, "chunk_index": -1}', "chunk_index must be an integer, not -1"),
        ('{"id": 1, "chunk_index": 2147483648}', "chunk_index must be an integer"),
        ('{"id": 1, "title": "a\\u0000b"}', "a NUL character"),
        ('{"id": 1, "metadata": {"a\\u0000": 1}}', "a NUL character"),
        ('{"id": 1, "metadata": {"a": [{"b": "\\u0000"}]}}', "a NUL character"),
        ('{"id": 1, "tags": ["\\u0000"]}', "a NUL character"),
        ('{"id": "\\ud800"}', "a lone surrogate, U+D800"),
        ('{"id": 1, "metadata": {"\\udfff": 1}}', "a lone surrogate, U+DFFF"),
        ('{"id": 1, "embedding": []}', "embedding must be a list of numbers, not []"),
        ('{"id": 1, "embedding": {"0": 1}}', "embedding must be a list of numbers"),
        ('{"id": 1, "embedding": 3}', "embedding must be a list of numbers, not 3"),
        ('{"id": 1, "embedding": "1, 2"}', "broken embedding at column 2"),
        ('{"id": 1, "embedding": [1, "2"]}', "embedding holds something that is not a number"),
        ('{"id": 1, "embedding": [1, null]}', "embedding holds something that is not a number"),
        ('{"id": 1, "embedding": [1, 1e39]}', "embedding holds a number beyond single precision"),
        ('{"id": 1, "embedding": [0, 0.0]}', "embedding is all zeros"),
    ],
)
def test_a_bad_line_is_named_and_its_neighbours_are_read(
    tmp_path: Path, line: str | bytes, message: str
) -> None:
    path = written(tmp_path, "a.jsonl", '{"id": "before"}', "", line, '{"id": "after"}')
    items = list(DocumentFile(path, FileOptions(source="notes")))
    assert [number for number, _ in items] == [1, 3, 4]
    before, bad, after = (item for _, item in items)
    assert isinstance(before, Document)
    assert isinstance(after, Document)
    assert (before.source_id, after.source_id) == ("before", "after")
    assert isinstance(bad, UnreadableInput)
    assert bad.message.startswith("Line 3: ")
    assert message in bad.message
    assert len(bad.message) < 200
    assert "\n" not in bad.message


def test_a_line_names_its_source_where_the_load_does_not(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"id": 1}', '{"id": 2, "source_table": 3}')
    assert refusals(path, source=None) == {
        1: "Line 1: no source_table, and none is named for all.",
        2: "Line 2: source_table must be text, not a number.",
    }


def test_a_line_too_long_is_passed_over_in_constant_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 2**16)
    fits = '{"id": 2, "text": "' + "x" * (2**16 - 22) + '"}'
    path = written(tmp_path, "a.jsonl", '{"id": 1}', "x" * 2**24, fits, fits + " ", '{"id": 3}')

    tracemalloc.start()
    found = refusals(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert found == {
        2: "Line 2: longer than 65,536 bytes.",
        4: "Line 4: longer than 65,536 bytes.",
    }
    assert peak < 2**21
    last = [item for _, item in DocumentFile(path, FileOptions(source="notes"))][-1]
    assert isinstance(last, Document)
    assert last.source_id == "3"


def test_many_lines_take_the_memory_of_one(tmp_path: Path) -> None:
    line = json.dumps({"id": 1, "text": "x" * 1000, "embedding": [0.25] * 100})
    path = written(tmp_path, "a.jsonl", *[line] * 5000)
    tracemalloc.start()
    count = sum(1 for _ in DocumentFile(path, FileOptions(source="notes")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 5000
    assert peak < Path(path).stat().st_size / 10


def test_names_that_no_field_goes_by_are_kept_for_the_report(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"id": 1, "url": 2, "\\ud800": 3}', '{"id": 2, "url": 0}')
    file = DocumentFile(path, FileOptions(source="notes"))
    assert len(list(file)) == 2
    assert list(file.passed_over) == ["url", "\\ud800"]

    keys = {f"key {n}": n for n in range(1000)}
    file = DocumentFile(written(tmp_path, "b.jsonl", json.dumps({"id": 1} | keys)))
    list(file)
    assert len(file.passed_over) == files.KEPT_NAMES


# --- CSV ----------------------------------------------------------------------

ARTICLES = (
    "article_no,headline,body,user,labels,vector,extra,url",
    '1,Flight,"Wings, and\nfins.",12,"wing, history,","[0.5, 1]","{""year"": 1903}",x',
    "2,Sea,,,,,,",
)
COLUMNS = (
    "id=article_no,title=headline,content=body,owner=user,tags=labels,"
    "embedding=vector,metadata=extra"
)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "A.CSV"])
def test_columns_by_a_mapping(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, *ARTICLES)
    first, second = documents(path, columns=parse_columns(COLUMNS))
    assert (first.source_id, first.title, first.content) == ("1", "Flight", "Wings, and\nfins.")
    assert (first.user_id, first.tags) == (12, ["wing", "history"])
    assert (first.metadata, list(first.embedding or [])) == ({"year": 1903}, [0.5, 1.0])
    assert second == Document("notes", "2", title="Sea")

    file = DocumentFile(path, FileOptions(columns=parse_columns(COLUMNS), source="notes"))
    assert [line for line, _ in file] == [2, 4]
    assert list(file.passed_over) == ["url"]


def test_columns_by_their_own_names_and_a_mapping_for_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "source_id,user_id,headline,text,chunk", "x,3,A,B,1")
    (document,) = documents(path, columns={"title": "headline"})
    assert document == Document("notes", "x", "A", "B", user_id=3, chunk_index=1)


def test_tabs_and_other_delimiters(tmp_path: Path) -> None:
    expected = [Document("notes", "1", title="a,b", tags=["x", "y"])]
    path = written(tmp_path, "a.tsv", "id\ttitle\ttags", "1\ta,b\tx;y")
    assert documents(path, tag_separator=";") == expected
    path = written(tmp_path, "a.csv", "id\ttitle\ttags", "1\ta,b\tx;y")
    assert documents(path, tag_separator=";", delimiter="\t") == expected
    assert documents(path, tag_separator=";", delimiter="\\t") == expected
    path = written(tmp_path, "b.csv", "id|title|tags", "1|a,b|x;y", "", "||")
    assert documents(path, tag_separator=";", delimiter="|") == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,a", "2 columns, where the header has 7"),
        ("1,a,b,c,d,e,f,g", "8 columns, where the header has 7"),
        (",a,b,,,,", "no id"),
        ("1,a,b,ada,,,", "owner must be an integer, not 'ada'"),
        ("1,a,b,,1.5,,", "chunk_index must be an integer, not '1.5'"),
        ('1,a,b,,,"[1, x]",', "broken embedding at column 5"),
        ("1,a,b,,,7,", "embedding must be a list of numbers, not 7"),
        ("1,a,b,,,,7", "metadata must be an object, not a number"),
        ("1,a,b,,,,{", "broken metadata at column 2"),
        ('1,"a"b,c,,,,', "expected after"),
        (b"1,a\x00,b,,,,", "a NUL character"),
        (b"1,caf\xe9,b,,,,", "not utf-8, by the byte 0xE9"),
    ],
)
def test_a_bad_row_is_named_and_its_neighbours_are_read(
    tmp_path: Path, row: str | bytes, message: str
) -> None:
    path = written(
        tmp_path,
        "a.csv",
        "id,title,content,owner,chunk,embedding,metadata",
        '0,"two\nlines",,,,,',
        row,
        "2,after,,,,,",
    )
    items = list(DocumentFile(path, FileOptions(source="notes")))
    assert [number for number, _ in items] == [2, 4, 5]
    bad = items[1][1]
    assert isinstance(bad, UnreadableInput)
    assert bad.message.startswith("Line 4: ")
    assert message in bad.message
    assert isinstance(items[2][1], Document)


def test_a_quote_that_is_never_closed_is_told_by_the_line_it_opens_in(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "id,title", "1,a", '2,"b', *["3,c"] * 100)
    assert refusals(path) == {3: "Line 3: unexpected end of data."}


def test_a_quote_never_closed_takes_no_more_than_a_line_s_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 1000)
    path = written(tmp_path, "a.csv", "id,title", '1,"a', *["2,b"] * 1000)
    found = refusals(path)
    assert found == {2: "Line 2: field larger than field limit (1000)."}
    read = [line for line, item in DocumentFile(path, FileOptions(source="n")) if line > 2]
    assert read
    assert read[-1] == 1002


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("id,title", {"content": "body"}, "has no column 'body', meant for content"),
        ("id,title,title", {}, "has 2 columns 'title', meant for title"),
        ("key,title", {}, "has no column for id"),
        ("id,headline", {}, "has no column for content or embedding or title"),
    ],
)
def test_a_header_that_does_not_do_is_told_with_the_columns_there_are(
    tmp_path: Path, header: str, columns: dict[str, str], message: str
) -> None:
    path = written(tmp_path, "a.csv", header, "1,a,b")
    with pytest.raises(InvalidArgument, match=message) as refused:
        documents(path, columns=columns)
    assert repr(header.split(",")[1]) in refused.value.hint


@pytest.mark.parametrize("header", [b"i\xe9d,title", b'"id,title'])
def test_a_header_that_cannot_be_read(tmp_path: Path, header: bytes) -> None:
    with pytest.raises((UnreadableInput, InvalidArgument), match=r"header|no column for id"):
        documents(written(tmp_path, "a.csv", header, "1,a"))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("", {}),
        ("id=a", {"id": "a"}),
        ("_id=a,text=b,user_id=c", {"id": "a", "content": "b", "owner": "c"}),
        (' id=a b,"title=x, y=z"', {"id": "a b", "title": "x, y=z"}),
    ],
)
def test_the_syntax_of_a_mapping(text: str, columns: dict[str, str]) -> None:
    assert parse_columns(text) == columns


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id", "has 'id'"),
        ("id=", "has 'id='"),
        ("=a", "has '=a'"),
        ("id=a,", "has ''"),
        ("name=a", "has 'name=a'"),
        ("id=a,source_id=b", "has 'source_id=b': that field twice"),
    ],
)
def test_a_mapping_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as refused:
        parse_columns(text)
    assert "FIELD=COLUMN" in refused.value.hint
    assert "content" in refused.value.hint


# --- Files that are none ------------------------------------------------------


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in (
        ("missing.jsonl", "No such file or directory"),
        ("folder.jsonl", "Is a directory"),
    ):
        path = str(tmp_path / name)
        with pytest.raises(UnreadableInput, match=message) as refused:
            documents(path)
        assert path in refused.value.message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_is_told_by_its_mark(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, "a.jsonl", ("\ufeff" + '{"id": 1}').encode(encoding))
    with pytest.raises(UnreadableInput, match="is UTF-16") as refused:
        documents(path)
    assert "iconv" in refused.value.hint


def test_damaged_gzip_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    lines = [json.dumps({"id": n, "text": str(hash(str(n)))}) for n in range(20_000)]
    path = Path(written(tmp_path, "a.jsonl.gz", *lines))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-8] + bytes(8)):
        path.write_bytes(damaged)
        *good, (line, bad) = DocumentFile(str(path), FileOptions(source="notes"))
        assert len(good) > 1000
        assert all(isinstance(item, Document) for _, item in good)
        assert isinstance(bad, UnreadableInput)
        assert f"Line {line}: the file cannot be read from here on" in bad.message
        assert DocumentFile(str(path)).count_lines() is None

    path.write_bytes(b"\x1f\x8b no gzip")
    ((line, bad),) = DocumentFile(str(path))
    assert line == 1
    assert isinstance(bad, UnreadableInput)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.txt", {}, "does not tell its format"),
        ("a.gz", {}, "does not tell its format"),
        ("a.jsonl", {"encoding": "klingon"}, "no encoding 'klingon'"),
        ("a.jsonl", {"encoding": "rot13"}, "no encoding 'rot13'"),
        ("a.jsonl", {"encoding": "utf-16"}, "Lines of utf-16 cannot be told apart"),
        ("a.jsonl", {"columns": {"id": "a"}}, "mapping is for CSV"),
        ("a.csv", {"delimiter": "::"}, "one character, not '::'"),
        ("a.csv", {"delimiter": '"'}, "one character"),
        ("a.csv", {"tag_separator": ""}, "The tag separator is empty"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        DocumentFile(name, FileOptions(**options))


def test_a_format_may_be_named(tmp_path: Path) -> None:
    assert len(documents(written(tmp_path, "a.txt", '{"id": 1}'), format="jsonl")) == 1
    assert len(documents(written(tmp_path, "b.txt", "id,title", "1,a"), format="csv")) == 1
