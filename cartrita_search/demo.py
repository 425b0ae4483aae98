"""What ``manage.py demo`` does: search the standard library's own documentation.

The corpus is on every machine that runs Python, is real prose about things
that people ask for, and needs no download.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import platform
import re
import sys
import sysconfig
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from django.conf import settings

from .embedders import get_embedder
from .embedding_work import embedding_text
from .errors import InvalidArgument
from .ingest import (
    Document,
    content_hash,
    finish_load,
    prune_source,
    stored_hashes,
    upsert_documents,
)
from .retrieval import Hit, keyword_search, search, similarity_search
from .terminal import WIDTH, progress, table

SOURCE = "python_stdlib"

QUESTIONS = (
    "how do I parse an ISO date",
    "run a function in another process",
    "find files recursively by pattern",
    "cache the result of a function",
    "run coroutines concurrently and gather their results",
    "extract a zip archive",
    "copy a whole directory tree",
)

#: Hits shown for a question; and of either leg alone.
SHOWN, SHOWN_OF_A_LEG = 5, 3

#: How far down a leg's own ranking is looked at to say where a hit stands in it.
DEPTH = 50

#: Documents embedded and stored at a time: an interrupted run repeats no more than these.
CHUNK = 128

LEGEND = f"""\
For each question, the first {SHOWN} hits by meaning and words together, with
hybrid = 0.7 cosine + 0.3 BM25 / highest BM25, and where either leg alone ranks them
("-": not among its first {DEPTH}); then what either leg alone would have put first."""

#: Shorter docstrings ("Return the name.") answer no question.
MIN_CHARACTERS = 40

#: Files and folders left out.
SKIPPED = frozenset(
    {
        # test suites, applications, superseded code; what does something when imported
        "__main__",
        "antigravity",
        "distutils",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "pydoc_data",
        "test",
        "tests",
        "this",
        "turtledemo",
        # graphics and character tables: large, and seldom asked about
        "encodings",
        "tkinter",
        "turtle",
        # how asyncio and multiprocessing work inside, which their documentation leaves out
        "forkserver",
        "heap",
        "popen_fork",
        "popen_forkserver",
        "popen_spawn_posix",
        "popen_spawn_win32",
        "reduction",
        "resource_sharer",
        "resource_tracker",
        "spawn",
        "staggered",
    }
)

#: What everyone knows by another name than that of the place where it is defined.
PUBLIC_NAMES = {
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_threading_local": "threading",
    "_weakrefset": "weakref",
    "multiprocessing.process.BaseProcess": "multiprocessing.Process",
}

#: Modules written in C have no source to parse and are imported instead. These are
#: the ones whose import has no effect; the value is the public name of the contents.
C_MODULES = {
    "array": "array",
    "binascii": "binascii",
    "builtins": "",
    "cmath": "cmath",
    "fcntl": "fcntl",
    "gc": "gc",
    "itertools": "itertools",
    "marshal": "marshal",
    "math": "math",
    "mmap": "mmap",
    "resource": "resource",
    "select": "select",
    "sys": "sys",
    "time": "time",
    "unicodedata": "unicodedata",
    "zlib": "zlib",
    "_collections": "collections",
    "_csv": "csv",
    "_io": "io",
    "_socket": "socket",
    "_sqlite3": "sqlite3",
    "_struct": "struct",
    "nt": "os",
    "posix": "os",
}


@dataclass(frozen=True)
class Docstring:
    """What one public object of the standard library says about itself.

    ``name`` is the qualified name, unique in the corpus. ``kind`` is "module",
    "class", "function" or "method". ``signature`` is "" where it is not known.
    """

    name: str
    kind: str
    signature: str
    text: str

    @property
    def title(self) -> str:
        """The name with its signature."""
        return self.name + self.signature


def collect(limit: int | None = None) -> list[Docstring]:
    """The docstrings of the running Python's standard library, ordered by name.

    Modules written in Python are parsed, not imported, so nothing of theirs
    runs. Of objects with the very same text the first is kept. A ``limit`` of 1
    or more takes that many, spread evenly over the names.
    """
    if limit is not None and limit < 1:
        raise InvalidArgument(f"The limit must be at least 1, not {limit}.")
    docs: dict[str, Docstring] = {}
    texts: set[str] = set()
    for doc in chain(_imported_modules(), _parsed_modules()):
        if len(doc.text) >= MIN_CHARACTERS and doc.name not in docs and doc.text not in texts:
            docs[doc.name] = doc
            texts.add(doc.text)
    ordered = sorted(docs.values(), key=lambda doc: doc.name)
    if limit is None or limit >= len(ordered):
        return ordered
    return [ordered[i * len(ordered) // limit] for i in range(limit)]


@dataclass(frozen=True)
class Loaded:
    """What `load` did. ``index`` is the report of the build: which index, and why."""

    documents: int
    embedded: int
    seconds: float
    index: str


def load(limit: int | None, say: Callable[[str], None]) -> Loaded:
    """Embed and store what is new or changed, then build the indexes; tells each step.

    Without a ``limit`` documents that another Python's library left are deleted.
    Cannot run inside a transaction.
    """
    started = time.monotonic()
    embedder = get_embedder()
    docs = collect(limit)
    say(f"{len(docs)} docstrings of Python {platform.python_version()}'s standard library.")

    stored = stored_hashes(SOURCE, embedder.name)
    new = [doc for doc in docs if stored.get((doc.name, 0)) != content_hash(doc.title, doc.text)]
    if not new:
        say("Nothing to embed: by their content hashes, all are stored already.")
    with progress(len(new), f"Embedding with {embedder.name}", sys.stderr) as advance:
        for start in range(0, len(new), CHUNK):
            chunk = new[start : start + CHUNK]
            vectors = embedder.embed_documents(
                [embedding_text(doc.title, doc.text) for doc in chunk]
            )
            upsert_documents(
                (
                    Document(SOURCE, doc.name, doc.title, doc.text, vector, {"kind": doc.kind})
                    for doc, vector in zip(chunk, vectors, strict=True)
                ),
                model=embedder.name,
                on_error="raise",
                index="keep",
            )
            advance(len(chunk))
    if limit is None:
        prune_source(SOURCE, (doc.name for doc in docs))

    index = finish_load(embedder.name)
    say(textwrap.fill(index, WIDTH))
    seconds = round(time.monotonic() - started, 1)
    say(f"{len(new)} embedded, {len(docs) - len(new)} unchanged; ready after {seconds} s.")
    return Loaded(len(docs), len(new), seconds, index)


@dataclass(frozen=True)
class Answer:
    """The first hits for a question, and the first `DEPTH` of either leg alone."""

    question: str
    hybrid: list[Hit]
    vector_only: list[Hit]
    keyword_only: list[Hit]

    def __str__(self) -> str:
        vector_ranks, keyword_ranks = _ranks(self.vector_only), _ranks(self.keyword_only)
        together = table(
            ["#", "title", "matched_by", "cosine", "BM25", "hybrid", "vector #", "keyword #"],
            [
                (
                    rank,
                    hit.source_id,
                    hit.matched_by,
                    hit.vector_similarity,
                    hit.keyword_score,
                    hit.hybrid_score,
                    vector_ranks.get(hit.source_id),
                    keyword_ranks.get(hit.source_id),
                )
                for rank, hit in enumerate(self.hybrid, 1)
            ],
            right=[0, 3, 4, 5, 6, 7],
        )
        alone = table(
            ["#", "vector only", "keyword only"],
            [
                (rank, *(hit and hit.source_id for hit in pair))
                for rank, pair in enumerate(
                    zip_longest(
                        self.vector_only[:SHOWN_OF_A_LEG], self.keyword_only[:SHOWN_OF_A_LEG]
                    ),
                    1,
                )
            ],
            right=[0],
        )
        return f"{self.question}\n\n{together}\n\n{alone}\n"

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "question": self.question,
            "hybrid": [
                {
                    "title": hit.title,
                    "matched_by": hit.matched_by,
                    "vector_similarity": hit.vector_similarity,
                    "keyword_score": hit.keyword_score,
                    "hybrid_score": hit.hybrid_score,
                }
                for hit in self.hybrid
            ],
            "vector_only": [hit.title for hit in self.vector_only[:SHOWN]],
            "keyword_only": [hit.title for hit in self.keyword_only[:SHOWN]],
        }


def ask(question: str) -> Answer:
    """Hybrid search over the corpus with the default weights, and each leg alone."""
    return Answer(
        question,
        search(question, source=SOURCE, limit=SHOWN),
        similarity_search(question, source=SOURCE, limit=DEPTH),
        keyword_search(question, source=SOURCE, limit=DEPTH),
    )


def _ranks(hits: Iterable[Hit]) -> dict[str, int]:
    return {hit.source_id: rank for rank, hit in enumerate(hits, 1)}


def next_steps() -> str:
    """How to go on, in commands that can be pasted."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    manage = f"{'DEBUG=true ' if settings.DEBUG else ''}{python} manage.py"
    return f"""\
Ask something yourself:    {manage} search "your words"
Look around in the admin:  {manage} createsuperuser
                           {manage} runserver    and http://127.0.0.1:8000/admin/
The embedded servers go on running, and keep what is stored when they are stopped: make stop"""


# Modules written in Python

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = _Function | ast.ClassDef


def _parsed_modules() -> Iterator[Docstring]:
    library = Path(sysconfig.get_path("stdlib"))
    for module in sorted(sys.stdlib_module_names - SKIPPED):
        for file in (library / f"{module}.py", *sorted((library / module).rglob("*.py"))):
            parts = file.relative_to(library).with_suffix("").parts
            if file.is_file() and SKIPPED.isdisjoint(parts):
                yield from _parsed_module(file, [part for part in parts if part != "__init__"])


def _parsed_module(file: Path, parts: list[str]) -> Iterator[Docstring]:
    tree = _parse(file)
    module = ".".join(parts)
    module = PUBLIC_NAMES.get(module, module)
    package = ".".join(parts[:-1])
    reexported = _reexported(file, parts[-1], tree) if _is_public(package) else set()
    public = _is_public(module)
    if public:
        yield Docstring(module, "module", "", _docstring(tree))
    for node in _definitions(tree.body):
        if node.name in reexported:  # asyncio/runners.py defines what is known as asyncio.run
            yield from _parsed_definition(node, package)
        elif public:
            yield from _parsed_definition(node, module)


def _parsed_definition(
    node: _Definition, owner: str, *, in_class: bool = False
) -> Iterator[Docstring]:
    if node.name.startswith("_"):
        return
    name = f"{owner}.{node.name}"
    name = PUBLIC_NAMES.get(name, name)
    if not isinstance(node, ast.ClassDef):
        kind = "method" if in_class else "function"
        yield Docstring(name, kind, _signature(node, in_class), _docstring(node))
        return
    members = list(_definitions(node.body))
    signature, text = "", _docstring(node)
    for member in members:
        if member.name == "__init__" and isinstance(member, _Function):
            signature, text = _signature(member, True), text or _docstring(member)
    yield Docstring(name, "class", signature, text)
    for member in members:
        yield from _parsed_definition(member, name, in_class=True)


def _is_public(module: str) -> bool:
    return all(part and not part.startswith("_") for part in module.split("."))


def _reexported(file: Path, submodule: str, tree: ast.Module) -> set[str]:
    """The names of a submodule that its package offers as its own."""
    directory = file.parent.parent if file.name == "__init__.py" else file.parent
    package = _parse(directory / "__init__.py")
    names = _listed(package)
    for node in _statements(package.body):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] == submodule:
            imported = {alias.name for alias in node.names}
            everything = _listed(tree) or {
                definition.name for definition in _definitions(tree.body)
            }
            names |= everything if imported == {"*"} else imported
    return names


def _listed(tree: ast.Module) -> set[str]:
    """The names that a module's `__all__` spells out."""
    return {
        part.value
        for node in _statements(tree.body)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for part in ast.walk(node.value)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }


def _definitions(body: Iterable[ast.stmt]) -> Iterator[_Definition]:
    return (node for node in _statements(body) if isinstance(node, _Definition))


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a block, with those under an `if` or a `try` in their place."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])
        else:
            yield node


@lru_cache(maxsize=8)  # a package's __init__ is asked for again by each of its modules
def _parse(file: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ast.parse(file.read_bytes())


def _docstring(node: ast.Module | _Definition) -> str:
    return (ast.get_docstring(node) or "").strip()


def _signature(node: _Function, in_class: bool) -> str:
    """The arguments as a caller sees them: no annotations, no `self` or `cls`."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any(decorator.endswith("property") for decorator in decorators):
        return ""
    arguments = copy.deepcopy(node.args)
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    if in_class and "staticmethod" not in decorators:
        del (arguments.posonlyargs or arguments.args)[:1]
    return f"({ast.unparse(arguments)})"


# Modules written in C


def _imported_modules() -> Iterator[Docstring]:
    for name, public_name in C_MODULES.items():
        try:
            module = importlib.import_module(name)
        except ImportError:  # not on this platform
            continue
        if public_name == name:
            yield Docstring(name, "module", "", _own_docstring(module))
        yield from _imported_members(module, public_name)


def _imported_members(owner: Any, prefix: str) -> Iterator[Docstring]:
    in_class = inspect.isclass(owner)
    for member_name in sorted(name for name in vars(owner) if not name.startswith("_")):
        member = getattr(owner, member_name)
        if owner is sys:  # a debugger or a test runner may have replaced a hook
            member = getattr(sys, f"__{member_name}__", member)
        name = f"{prefix}.{member_name}".lstrip(".")
        if inspect.isclass(member):
            if member.__name__ == member_name:  # not an alias: IOError is OSError
                yield Docstring(name, "class", "", _own_docstring(member))
                yield from _imported_members(member, name)
        elif inspect.isroutine(member):
            kind = "method" if in_class else "function"
            yield Docstring(name, kind, _c_signature(member), _own_docstring(member))


def _own_docstring(member: Any) -> str:
    return inspect.cleandoc(member.__doc__ or "").strip()  # inspect.getdoc would inherit one


def _c_signature(member: Any) -> str:
    # inspect.signature would evaluate the defaults, and fails on some.
    signature = getattr(member, "__text_signature__", None) or ""
    return re.sub(r"^\(\$\w+(, /)?(, )?", "(", signature)
