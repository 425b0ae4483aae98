"""The rules of the house: who imports whom, and what every SQL file keeps to."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import psycopg
import pytest
from django.conf import settings
from django.db.migrations.loader import MigrationLoader

from cartrita_search.db import SQL_ROOT
from cartrita_search.migration_operations import RunSQLFile
from tests import freeze_sql

PACKAGE = settings.BASE_DIR / "cartrita_search"

# --- Imports ----------------------------------------------------------------

#: A module imports from its own layer and from those before it. A module that is
#: not named here is a capability, between db and ops.
LAYERS = (
    {"conf", "errors"},
    {"db", "models"},
    {"<capability>"},
    {"ops"},
    {"admin", "management"},
    {"apps", "checks"},
)
CAPABILITY = 2


def imports(file: Path, package: Path = PACKAGE) -> set[str]:
    """The modules that a file imports, absolutely named, wherever in it."""
    name = ".".join(file.relative_to(package.parent).with_suffix("").parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.removesuffix(".__init__").split(".")
                above = node.level - (file.stem == "__init__")
                base = ".".join([*parts[: len(parts) - above], *([base] if base else [])])
            # `from . import checks` may name a module or an object: both are kept.
            found.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    return found


def ours(modules: set[str]) -> set[str]:
    """Of these modules, the first name of each that is inside the package."""
    return {name.split(".")[1] for name in modules if name.startswith(f"{PACKAGE.name}.")} & PARTS


PARTS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def part_of(file: Path) -> str:
    """The top-level module or folder that a file belongs to."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def layer(part: str) -> int:
    return next((level for level, names in enumerate(LAYERS) if part in names), CAPABILITY)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_one_way(file: Path) -> None:
    imported = imports(file)
    assert not {name for name in imported if name.split(".")[0] in {"cartrita", "tests"}}

    part, used = part_of(file), ours(imported)
    if part == "migrations":
        assert used <= {"migration_operations"}
        assert {name.split(".")[0] for name in imported} <= {
            "django",
            "pgvector",
            PACKAGE.name,
            *sys.stdlib_module_names,
        }
    elif part == "migration_operations":
        assert used <= {"adoption", "db"}
    else:
        assert not {name for name in used if layer(name) > layer(part)}
        assert part == "ops" or "migration_operations" not in used


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {}
    for file in FILES:
        graph.setdefault(part_of(file), set()).update(ours(imports(file)) - {part_of(file)})
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the modules


def test_every_form_of_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "package" / "folder" / "module.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "import a.b\n"
        "from .. import c\n"
        "from ..d import e\n"
        "from . import f\n"
        "def g():\n"
        "    from package.h import i\n"
    )
    assert imports(file, tmp_path / "package") >= {
        "a.b",
        "package.c",
        "package.d",
        "package.folder.f",
        "package.h",
    }


# --- SQL files --------------------------------------------------------------

SQL_FILES = sorted(path.relative_to(SQL_ROOT).as_posix() for path in SQL_ROOT.rglob("*.sql"))
CREATING = [path for path in SQL_FILES if not path.endswith(".drop.sql")]

#: Files whose name says more than the name of their object.
OBJECTS = {
    "upsert_embedding_uuid": "upsert_embedding",  # an overload
    "vector_extension": "vector",
    "search_documents_keyword_columns": "search_documents",  # two columns more
    "embedding_models_indexed_by": "embedding_models",  # a column more
    "search_settings_rebuild": "search_settings",  # two columns more
    "embedding_models_preferred_storage": "embedding_models",  # a column more
    "search_settings_keyword_budget": "search_settings",  # another default
    "embeddings_segment": "embeddings",  # a column more
    "embedding_models_visible_segment": "embedding_models",
    "redis_sessions_revoked_at": "redis_sessions",
    "search_performance_metrics_retention": "search_performance_metrics",  # another index
    "cache_invalidation_log_retention": "cache_invalidation_log",  # another index
}
#: v1 had the extension before us, so it stays when we go.
NEVER_DROPPED = "ingest/vector_extension"

CREATE = re.compile(
    r"^(?:CREATE|ALTER) (?:OR REPLACE |UNIQUE )?(?P<kind>TABLE|VIEW|TYPE|FUNCTION|TRIGGER|INDEX|"
    r"EXTENSION)(?: IF NOT EXISTS| CONCURRENTLY)?\s+(?:public\.)?(?P<name>\w+)"
    r"(?:\s+ON public\.(?P<table>\w+))?",
    re.MULTILINE,
)


def object_of(path: str) -> str:
    stem = path.rsplit("/", 1)[-1].split(".", maxsplit=1)[0]
    return OBJECTS.get(stem, stem)


@pytest.mark.parametrize("path", SQL_FILES)
def test_a_sql_file_is_named_by_capability_object_and_version(path: str) -> None:
    assert re.fullmatch(r"[a-z_]+/[a-z_0-9]+\.(v[1-9]\d*|drop)\.sql", path)


@pytest.mark.parametrize("path", CREATING)
def test_a_sql_file_makes_the_one_object_that_it_is_named_for(path: str) -> None:
    text, name = (SQL_ROOT / path).read_text(), object_of(path)
    made = list(CREATE.finditer(text))
    assert made[0]["name"] == name
    # Besides its object: the indexes of a table, the trigger of a trigger function.
    for other in made[1:]:
        if other["kind"] == "INDEX":
            assert made[0]["kind"] == "TABLE"
            assert (other["table"] or re.findall(r"ON public\.(\w+)", text[other.end() :])[0]) == (
                name
            )
        else:
            assert (other["kind"], other["name"]) == ("TRIGGER", name)


@pytest.mark.parametrize("path", CREATING)
def test_a_sql_file_says_what_it_promises_and_comments_its_object(path: str) -> None:
    text, name = (SQL_ROOT / path).read_text(), object_of(path)
    head = re.match(r"(?:--.*\n)+", text)
    assert head is not None
    assert "Promises" in head[0]
    if not path.startswith(NEVER_DROPPED):
        assert re.search(
            rf"^COMMENT ON ((TABLE|VIEW|TYPE|FUNCTION|COLUMN|INDEX) public\.|TRIGGER ){name}\b",
            text,
            re.MULTILINE,
        )


def test_what_is_made_can_be_dropped_and_nothing_else() -> None:
    made = {path.split(".")[0] for path in CREATING}
    dropped = {path.split(".")[0] for path in SQL_FILES if path.endswith(".drop.sql")}
    assert made - dropped == {NEVER_DROPPED}
    assert dropped - made == set()


def files_of_migrations() -> dict[str, list[str]]:
    """The SQL files that each migration runs, forwards and backwards."""
    loader = MigrationLoader(None)
    return {
        name: [
            path
            for operation in migration.operations
            if isinstance(operation, RunSQLFile)
            for path in (operation.path, operation.reverse)
            if path
        ]
        for (app, name), migration in sorted(loader.disk_migrations.items())
        if app == PACKAGE.name
    }


def test_every_sql_file_is_run_by_one_migration() -> None:
    used = Counter(path for files in files_of_migrations().values() for path in files)
    # A version may also be what a later one reverses to.
    assert set(used) == set(SQL_FILES)
    created = Counter(
        operation.path
        for (app, _), migration in MigrationLoader(None).disk_migrations.items()
        if app == PACKAGE.name
        for operation in migration.operations
        if isinstance(operation, RunSQLFile)
    )
    assert created == Counter(CREATING)


#: Each write pays for these, and would for pinning. They say `public.` instead.
QUALIFIED = {"advance_generation", "follow_search_generation"}


def test_functions_pin_their_search_path_run_as_their_caller_and_are_nobody_s(
    pg: psycopg.Connection,
) -> None:
    functions = pg.execute(
        """
        SELECT p.oid::regprocedure::text, p.proname, p.prosecdef, p.prosqlbody IS NOT NULL,
            coalesce(p.proconfig, '{}'),
            EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
                    WHERE a.grantee = 0)
        FROM pg_proc AS p
        WHERE p.pronamespace = 'public'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_depend AS d
                            WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid
                                AND d.deptype = 'e')
        """
    ).fetchall()
    expected = {
        object_of(path)
        for path in CREATING
        if re.search(r"^CREATE FUNCTION", (SQL_ROOT / path).read_text(), re.MULTILINE)
    }
    assert {name for _, name, *_ in functions} == expected
    for signature, name, is_definer, has_bound_body, config, is_public in functions:
        pinned = has_bound_body or "search_path=public, pg_temp" in config
        assert pinned != (name in QUALIFIED), signature
        assert not is_definer, signature
        assert not is_public, signature


# --- Released files ---------------------------------------------------------


def test_released_sql_files_are_as_they_were_released() -> None:
    assert freeze_sql.changed(SQL_ROOT) == []
    # What a replaced object reverses to was released with an earlier migration.
    own: dict[str, list[str]] = {}
    before: set[str] = set()
    for name, files in files_of_migrations().items():
        own[name] = [path for path in files if path not in before]
        before.update(files)
    assert freeze_sql.unlisted(SQL_ROOT, own) == []


@pytest.fixture
def sql_root(tmp_path: Path) -> Path:
    """Two SQL files of one migration, released."""
    for name in ("a.v1.sql", "a.drop.sql"):
        path = tmp_path / "capability" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"SELECT '{name}';\n")
    assert freeze_sql.freeze(tmp_path) == 2
    return tmp_path


def test_a_change_of_a_released_file_is_seen_and_not_frozen(sql_root: Path) -> None:
    frozen = (sql_root / freeze_sql.FROZEN).read_text()
    assert freeze_sql.changed(sql_root) == []
    file = sql_root / "capability" / "a.v1.sql"

    file.write_bytes(b"SELECT 'a.v1.sql';\r\n")
    assert freeze_sql.changed(sql_root) == []

    file.write_text("SELECT 'another';\n")
    assert freeze_sql.changed(sql_root) == ["capability/a.v1.sql"]
    with pytest.raises(ValueError, match=r"capability/a\.v1\.sql"):
        freeze_sql.freeze(sql_root)
    assert (sql_root / freeze_sql.FROZEN).read_text() == frozen
    freeze_sql.freeze(sql_root, force=True)
    assert freeze_sql.changed(sql_root) == []

    file.unlink()
    assert freeze_sql.changed(sql_root) == ["capability/a.v1.sql"]


def test_a_new_file_belongs_in_a_new_migration(sql_root: Path) -> None:
    (sql_root / "capability" / "b.v1.sql").write_text("SELECT 'b';\n")
    released = ["capability/a.v1.sql", "capability/a.drop.sql"]
    new = ["capability/b.v1.sql"]
    assert freeze_sql.unlisted(sql_root, {"0001": released, "0002": new}) == []
    assert freeze_sql.unlisted(sql_root, {"0001": released + new}) == new
    assert freeze_sql.freeze(sql_root) == 1
    assert freeze_sql.unlisted(sql_root, {"0001": released + new}) == []
