"""Maximal marginal relevance, the ONNX cross-encoder, the configured reranker, stored vectors."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from django.conf import settings
from django.test import override_settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from cartrita_search.errors import InvalidArgument, RerankerUnavailable
from cartrita_search.rerank import (
    Candidate,
    MaximalMarginalRelevance,
    OnnxCrossEncoder,
    Reranker,
    RerankQuery,
    candidate_vectors,
    get_reranker,
)
from tests.onnx_graph import lookup_model, pair_model
from tests.postgres import scalar, upsert

MMR = "cartrita_search.rerank.MaximalMarginalRelevance"
CROSS_ENCODER = "cartrita_search.rerank.OnnxCrossEncoder"
QUERY = RerankQuery("tea")


def candidate(
    number: int,
    score: float = 1.0,
    vector: Sequence[float] | None = None,
    title: str = "",
    content: str = "",
) -> Candidate:
    return Candidate(UUID(int=number), title, content, score, vector)


def order(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[int]:
    """The candidates' numbers, as search sorts them: by score, then by id."""
    best_first = sorted(
        zip(candidates, scores, strict=True), key=lambda pair: (-pair[1], pair[0].id)
    )
    return [c.id.int for c, _ in best_first]


# --- Maximal marginal relevance ----------------------------------------------


def mmr(diversity: float, candidates: Sequence[Candidate]) -> list[int]:
    reranker = MaximalMarginalRelevance(diversity)
    return order(candidates, reranker.rerank(QUERY, candidates))


def oracle(diversity: float, candidates: Sequence[Candidate]) -> list[int]:
    """The same formula, written out step by step over a matrix of cosines."""
    scores = np.array([c.score for c in candidates])
    span = np.ptp(scores)
    relevance = (scores - scores.min()) / span if span else np.ones(len(scores))
    vectors = np.array([c.vector or [0.0] * 3 for c in candidates], dtype=float)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(norms == 0, 1, norms)
    cosines = units @ units.T
    chosen: list[int] = []
    left = set(range(len(candidates)))
    while left:
        value = {
            i: (1 - diversity) * relevance[i]
            - diversity * max([0.0, *(cosines[i, s] for s in chosen)])
            for i in left
        }
        chosen.append(min(left, key=lambda i: (-round(value[i], 9), candidates[i].id)))
        left.discard(chosen[-1])
    return [candidates[i].id.int for i in chosen]


def test_a_near_duplicate_goes_behind_something_else() -> None:
    candidates = [
        candidate(1, 1.0, [1, 0]),
        candidate(2, 0.95, [1, 0.01]),
        candidate(3, 0.8, [0, 1]),
        candidate(4, 0.0, [-1, 1]),
    ]
    assert mmr(0.0, candidates) == [1, 2, 3, 4]
    assert mmr(0.3, candidates) == [1, 3, 2, 4]


def test_its_values_are_the_formulas() -> None:
    candidates = [candidate(1, 3.0, [2, 0]), candidate(2, 2.0, [1, 1]), candidate(3, 1.0, [0, 5])]
    # 3 is chosen before 2: .75 * 0 - 0 against .75 * .5 - .25 / sqrt(2), then 2 is next to both.
    assert MaximalMarginalRelevance(0.25).rerank(QUERY, candidates) == pytest.approx(
        [0.75, 0.375 - 0.25 / math.sqrt(2), -0.25 / math.sqrt(2)]
    )


def test_only_the_order_of_scores_and_their_ratios_count() -> None:
    """Reciprocal ranks, cosines below 0 and sums of weights are all brought to [0, 1]."""
    vectors = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]
    orders = {
        tuple(mmr(0.4, [candidate(i, a * s + b, vectors[i]) for i, s in enumerate([3, 2, 1])]))
        for a, b in [(1, 0), (0.25, -2), (1 / 64, 0.5)]
    }
    assert len(orders) == 1


def test_without_vectors_the_order_stays() -> None:
    candidates = [candidate(i, score) for i, score in enumerate([0.5, 0.9, 0.7])]
    assert mmr(0.9, candidates) == [1, 2, 0]


def test_a_document_without_a_vector_is_like_no_other() -> None:
    candidates = [
        candidate(1, 1.0, [1, 0]),
        candidate(2, 0.9, [1, 0]),
        candidate(3, 0.8),
        candidate(4, 0.8, [0, 0]),
        candidate(5, 0.0, [0, 1]),
    ]
    assert mmr(0.5, candidates)[:3] == [1, 3, 4]


def test_an_opposite_is_no_better_than_a_stranger() -> None:
    candidates = [candidate(1, 1, [1, 0]), candidate(2, 0.5, [-1, 0]), candidate(3, 0.5, [0, 1])]
    assert mmr(0.5, candidates) == [1, 2, 3]
    assert max(MaximalMarginalRelevance(0.5).rerank(QUERY, candidates)) == 0.5


def test_equals_go_by_id() -> None:
    same = [candidate(number, 1.0, [1, 0]) for number in (5, 1, 4, 2, 3)]
    assert mmr(0.3, same) == [1, 2, 3, 4, 5]


def test_no_candidates() -> None:
    assert MaximalMarginalRelevance().rerank(QUERY, []) == []


whole = st.integers(-3, 3)
some_candidates = st.lists(
    st.tuples(st.integers(0, 4), st.none() | st.tuples(whole, whole, whole)),
    min_size=1,
    max_size=12,
)


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    drawn=some_candidates,
    diversity=st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]),
    shuffle=st.randoms(use_true_random=False),
)
def test_it_is_the_textbooks_order_whatever_the_order_given(
    drawn: list[tuple[int, tuple[int, int, int] | None]], diversity: float, shuffle: random.Random
) -> None:
    candidates = [candidate(i, score, vector) for i, (score, vector) in enumerate(drawn)]
    expected = oracle(diversity, candidates)
    assert mmr(diversity, candidates) == expected
    shuffle.shuffle(candidates)
    assert mmr(diversity, candidates) == expected


@pytest.mark.parametrize("diversity", [-0.1, 1.1, math.nan])
def test_a_diversity_outside_its_range_is_refused(diversity: float) -> None:
    with pytest.raises(InvalidArgument, match="from 0 to 1") as refused:
        MaximalMarginalRelevance(diversity)
    assert "RERANKER_OPTIONS" in refused.value.hint


def test_vectors_of_two_models_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="differ in dimension"):
        mmr(0.3, [candidate(1, 1, [1, 0]), candidate(2, 1, [1, 0, 0])])


# --- The cross-encoder -------------------------------------------------------

#: Even ids: in a pair's second text a token has the row after its own.
VOCABULARY = {"?": 0, "tea": 2, "coffee": 4, "cup": 6}
QUERY_TEA, TEA, COFFEE, CUP = 100.0, 3.0, -2.0, 0.5
LOGITS = [0, 0, QUERY_TEA, TEA, 0, COFFEE, 0, CUP]


def write_tokenizer(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def cross_encoder(
    folder: Path, rows: Sequence[Sequence[float]] | None = None, **options: Any
) -> OnnxCrossEncoder:
    (folder / "model.onnx").write_bytes(pair_model(rows or [[logit] for logit in LOGITS]))
    return OnnxCrossEncoder(folder / "model.onnx", write_tokenizer(folder), **options)


POTS = [
    candidate(1, 0.9, title="coffee", content="coffee cup cup cup"),
    candidate(2, 0.5, title="tea", content="cup"),
    candidate(3, 0.4, content="tea tea"),
    candidate(4, 0.3),
]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_query_and_document_are_read_as_a_pair(tmp_path: Path, batch_size: int) -> None:
    reranker = cross_encoder(tmp_path, batch_size=batch_size)
    assert reranker.rerank(QUERY, POTS) == pytest.approx(
        [QUERY_TEA + 2 * COFFEE + 3 * CUP, QUERY_TEA + TEA + CUP, QUERY_TEA + 2 * TEA, QUERY_TEA]
    )
    assert order(POTS, reranker.rerank(QUERY, POTS)) == [3, 2, 4, 1]


def test_of_two_classes_the_second_is_the_score(tmp_path: Path) -> None:
    reranker = cross_encoder(tmp_path, [[1.0, logit] for logit in LOGITS])
    tokens = [1 + 5, 1 + 2, 1 + 2, 1]
    one_class = [QUERY_TEA + 2 * COFFEE + 3 * CUP, QUERY_TEA + TEA + CUP, QUERY_TEA + 2 * TEA, 100]
    # Padding is row 0 of the table, which adds 1 to class 0 where a pair is shorter.
    padding = [max(tokens) - n for n in tokens]
    assert reranker.rerank(QUERY, POTS) == pytest.approx(
        [s - n - p for s, n, p in zip(one_class, tokens, padding, strict=True)]
    )


def test_a_document_past_the_limit_is_not_read(tmp_path: Path) -> None:
    reranker = cross_encoder(tmp_path, max_tokens=4)
    long = candidate(1, content="tea cup cup" + " tea" * 100_000)
    assert reranker.rerank(QUERY, [long]) == [QUERY_TEA + TEA + 2 * CUP]


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_without_words_the_scores_stay(tmp_path: Path, text: str | None) -> None:
    reranker = cross_encoder(tmp_path)
    assert reranker.rerank(RerankQuery(text, [1, 0]), POTS) == [0.9, 0.5, 0.4, 0.3]


def test_no_candidates_no_scores(tmp_path: Path) -> None:
    assert cross_encoder(tmp_path).rerank(QUERY, []) == []


def test_what_the_tokenizer_cannot_read(tmp_path: Path) -> None:
    odd = candidate(1, title="tea \ud800", content="\x00 cup")
    assert cross_encoder(tmp_path).rerank(QUERY, [odd]) == [QUERY_TEA + TEA + CUP]


@pytest.mark.parametrize("package", ["onnxruntime", "tokenizers"])
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RerankerUnavailable, match=package) as caught:
        OnnxCrossEncoder(tmp_path / "model.onnx", tmp_path / "tokenizer.json")
    assert "pip install onnxruntime tokenizers" in caught.value.hint


@pytest.mark.parametrize("contents", [None, b"", b"not a model"])
@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_missing_or_broken_file(tmp_path: Path, name: str, contents: bytes | None) -> None:
    cross_encoder(tmp_path)
    (tmp_path / name).unlink()
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    with pytest.raises(RerankerUnavailable, match="cross-encoder cannot be loaded"):
        OnnxCrossEncoder(tmp_path / "model.onnx", tmp_path / "tokenizer.json")


@pytest.mark.parametrize("axes", [2, 3])
def test_a_model_of_another_kind_is_refused(tmp_path: Path, axes: int) -> None:
    """An embedding model, for instance: three floats a text, or for each of its tokens."""
    (tmp_path / "model.onnx").write_bytes(lookup_model([[1, 2, 3]] * 8, axes))
    with pytest.raises(RerankerUnavailable, match="has the shape") as refused:
        OnnxCrossEncoder(tmp_path / "model.onnx", write_tokenizer(tmp_path))
    assert "one score, or two classes" in refused.value.hint


# --- The configured reranker -------------------------------------------------


class Stub:
    """The least that meets the protocol."""

    needs_vectors = False

    def rerank(self, query: RerankQuery, candidates: Sequence[Candidate]) -> list[float]:
        return [0.0 for _ in candidates]


def configured(path: str, **options: object) -> override_settings:
    return override_settings(
        CARTRITA_SEARCH=settings.CARTRITA_SEARCH | {"RERANKER": path, "RERANKER_OPTIONS": options}
    )


def test_by_default_it_is_the_one_that_needs_no_model() -> None:
    with override_settings(CARTRITA_SEARCH={}):
        assert isinstance(get_reranker(), MaximalMarginalRelevance)


def test_it_is_made_once_for_its_options(tmp_path: Path) -> None:
    with configured(f"{__name__}.Stub"):
        stub = get_reranker()
        assert isinstance(stub, Stub)
        assert get_reranker() is stub
    cross_encoder(tmp_path)
    paths = {
        "model_path": f"{tmp_path}/model.onnx",
        "tokenizer_path": f"{tmp_path}/tokenizer.json",
    }
    with configured(CROSS_ENCODER, **paths):
        made = get_reranker()
        assert isinstance(made, OnnxCrossEncoder)
        assert isinstance(made, Reranker)
        assert (made.needs_vectors, MaximalMarginalRelevance.needs_vectors) == (False, True)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("nowhere.at.All", {}, "reranker 'nowhere.at.All' cannot be imported"),
        (MMR, {"colour": "red"}, "refused its options.*colour"),
        (CROSS_ENCODER, {}, "refused its options.*model_path"),
        ("fractions.Fraction", {}, "is no Reranker"),
        (CROSS_ENCODER, {"model_path": "a.onnx", "tokenizer_path": "t.json"}, "cannot be loaded"),
    ],
)
def test_a_wrong_setting_says_which(path: str, options: dict[str, object], message: str) -> None:
    with configured(path, **options), pytest.raises(RerankerUnavailable, match=message) as caught:
        get_reranker()
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_worker_forked_after_a_reranking_works_and_ends(tmp_path: Path) -> None:
    """With the model that it would inherit, the worker could not exit."""
    cross_encoder(tmp_path)
    options = {
        "model_path": f"{tmp_path}/model.onnx",
        "tokenizer_path": f"{tmp_path}/tokenizer.json",
        "threads": 2,
    }
    search = {"RERANKER": CROSS_ENCODER, "RERANKER_OPTIONS": options}
    program = f"""
import os, sys, uuid, warnings
from django.conf import settings
settings.configure(CARTRITA_SEARCH={search})
from cartrita_search.rerank import Candidate, RerankQuery, get_reranker
asked = RerankQuery("tea"), [Candidate(uuid.uuid4(), "tea", "cup", 1.0)]
expected = get_reranker().rerank(*asked)
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
worker = os.fork()
if get_reranker().rerank(*asked) != expected:
    sys.exit(1)
if worker:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=settings.BASE_DIR, timeout=60, check=False
    )
    assert done.returncode == 0


# --- Stored vectors ----------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("clean_tables")
def test_candidate_vectors_are_those_of_the_model(pg: psycopg.Connection) -> None:
    upsert(pg, "1", [1, 2.5, -3e-7], "mini")
    upsert(pg, "2", [0.1, 0.2, 0.3], "mini")
    upsert(pg, "1", [1, 0], "other")
    upsert(pg, "3", [0, 1], "other")
    ids = {
        key: scalar(pg, "SELECT id FROM search_documents WHERE source_id = %s", [key])
        for key in "123"
    }

    mini = candidate_vectors(ids.values(), "mini")
    assert set(mini) == {ids["1"], ids["2"]}
    assert mini[ids["1"]] == pytest.approx([1, 2.5, -3e-7])
    assert mini[ids["2"]] == pytest.approx([0.1, 0.2, 0.3])
    assert candidate_vectors(ids.values(), None) == mini  # the first registered is the default
    assert candidate_vectors([ids["3"]], "other") == {ids["3"]: [0, 1]}
    assert candidate_vectors([], "mini") == {}
    assert candidate_vectors(list(ids.values()), "no such model") == {}
