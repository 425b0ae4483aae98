"""``python -m tests.benchmarks.peers.worker MODULE SERVER…``: one store, driven by pipes.

Each call comes as a pickled (method, arguments) on standard input; each answer goes as
a pickled (seconds, result) or `Failure` to standard output. Only the method itself is
timed: not its arguments' way here, nor their conversion to what the package takes.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import time
from typing import Any

from .store import Failure, Server, Store


def main() -> None:
    """Answer calls until there are no more."""
    module, *where = sys.argv[1:]
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    store: Store | None = None
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: Any
        try:
            if store is None:
                loaded = importlib.import_module(f"tests.benchmarks.peers.{module}")
                store = loaded.STORE(Server(*where))
            answer = _timed(store, method, arguments)
        except Exception as error:  # noqa: BLE001 - a package may raise anything; it is shown
            line = " ".join(str(error).split())
            answer = Failure(f"{method}: {type(error).__name__}: {line}"[:200])
        pickle.dump(answer, answers)
        answers.flush()


def _timed(store: Store, method: str, arguments: list[Any]) -> tuple[float, Any]:
    match method:
        case "facts":
            return 0.0, (dict(store.hybrids), store.writes, store.writes_vectors)
        case "load":
            arguments = [store.prepare(*arguments)]
        case "load_vectors":
            arguments = [store.prepare_vectors(*arguments)]
        case "vector":
            query, k = arguments
            arguments = [store.query(query), k]
        case "hybrid":
            name, text, query, k = arguments
            arguments = [name, text, store.query(query), k]
    call = getattr(store, method)
    started = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
