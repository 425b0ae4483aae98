"""A transformer in ONNX form and its tokenizer, run on the CPU: embedders' and rerankers'.

onnxruntime, tokenizers and numpy are imported where they are used: production often
has its models elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import SearchError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What the tokenizer reads: a text, or two that belong together.
Text = str | tuple[str, str]


class OnnxModel:
    """A model and its tokenizer; an input is cut to its first ``max_tokens`` tokens.

    ``threads`` defaults to the CPUs this process may run on; in a container whose
    quota is smaller than the machine, set it to the quota. Several threads may
    call `run` at once.

    ``what`` names the model in messages, ``unavailable`` makes of a message the error
    that is raised if a package is missing or a file is missing or unreadable.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        tokenizer_path: str | os.PathLike[str],
        *,
        max_tokens: int,
        threads: int | None,
        what: str,
        unavailable: Callable[[str], SearchError],
    ) -> None:
        # From 1.29 on, onnxruntime's wheels report to Microsoft unless told not to before
        # the import; their uploading thread also aborts forked processes as they exit.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime
            import tokenizers
        except ImportError as error:
            raise unavailable(f"The {what} needs the package {error.name}.") from error

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
            raise unavailable(f"The {what} cannot be loaded: {error}") from error

        # The file's own settings pad every text to a fixed length.
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        # Tokenising reads the whole text before it truncates. A word longer than 100
        # characters is one unknown token to WordPiece, so text further on than this
        # does not reach the model unless it follows very long runs of white space.
        self._max_characters = 100 * max_tokens
        self._input_names = {model_input.name for model_input in self._session.get_inputs()}

    def run(
        self,
        texts: Sequence[Text],
        batch_size: int,
        finish: Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]],
    ) -> list[Any]:
        """One row, as Python floats, for each text, in the order of ``texts``.

        ``finish`` makes a batch's rows of the model's first output and the attention
        mask, (texts, tokens).
        """
        encodings = self._tokenizer.encode_batch([self._readable(text) for text in texts])
        # Texts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        rows: dict[int, Any] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            output, mask = self._run_batch([encodings[i] for i in batch])
            rows.update(zip(batch, finish(output, mask).tolist(), strict=True))
        return [rows[i] for i in range(len(texts))]

    def _readable(self, text: Text) -> Text:
        """``text`` without what the tokenizer cannot take: lone surrogates become "?"."""
        if isinstance(text, tuple):
            return self._readable_part(text[0]), self._readable_part(text[1])
        return self._readable_part(text)

    def _readable_part(self, text: str) -> str:
        return text[: self._max_characters].encode(errors="replace").decode()

    def _run_batch(
        self, encodings: Sequence[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        import numpy as np

        shape = (len(encodings), max(len(encoding.ids) for encoding in encodings))
        input_ids = np.zeros(shape, dtype=np.int64)
        token_types = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, encoding in enumerate(encodings):
            length = len(encoding.ids)
            input_ids[row, :length] = encoding.ids
            token_types[row, :length] = encoding.type_ids
            mask[row, :length] = 1
        inputs = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": token_types}
        output = self._session.run(None, {name: inputs[name] for name in self._input_names})[0]
        return output, mask


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # absent on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
