"""Judged queries against the searches: how good each is, and which weights are best.

`evaluate_collection` measures a BEIR-style folder in a scratch database,
`evaluate_live` judgements on the documents that are there. Importing this raises
`PackageMissing` where numpy, scipy or ir-measures is not installed: production need
not have them.
"""

from __future__ import annotations

from ..errors import PackageMissing

try:
    from .evaluate import (
        Evaluation,
        evaluate_collection,
        evaluate_judgements,
        evaluate_live,
    )
    from .judgements import (
        CorpusDocument,
        JudgedQuery,
        Judgements,
        Key,
        read_corpus,
        read_judgements,
        read_qrels,
        read_queries,
        read_vectors,
    )
    from .measures import MEASURES, measure
    from .plot import check_plot, draw
    from .weights import band
except ImportError as error:
    raise PackageMissing(
        f"Evaluation needs the package {error.name}.",
        "Install it: pip install ir-measures scipy matplotlib",
    ) from error

__all__ = [
    "MEASURES",
    "CorpusDocument",
    "Evaluation",
    "JudgedQuery",
    "Judgements",
    "Key",
    "band",
    "check_plot",
    "draw",
    "evaluate_collection",
    "evaluate_judgements",
    "evaluate_live",
    "measure",
    "read_corpus",
    "read_judgements",
    "read_qrels",
    "read_queries",
    "read_vectors",
]
