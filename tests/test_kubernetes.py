"""The manifests: what they promise, and the migration Job's very command run for real."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands, load_command_class
from django.core.management.base import CommandParser
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from cartrita.embedded.postgres import client_program
from cartrita_search.db import MIGRATION_LOCK

from .embedding_server import KEY, embedding_server
from .postgres import scalar
from .tcp_postgres import (
    DATABASE,
    PASSWORD,
    ROLE,
    TcpPostgres,
    free_port,
    tcp_postgres,
    tls_programs,
)
from .v1 import PASSWORDS, make_v1

ROOT: Path = settings.BASE_DIR
K8S = ROOT / "k8s"
OVERLAYS = ("local", "production")
Manifest = dict[str, Any]


@cache
def rendered(folder: str) -> list[Manifest]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(K8S / folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(f"overlays/{request.param}")


def job_file() -> list[Manifest]:
    return list(yaml.safe_load_all((K8S / "job-db-migrate.yaml").read_text()))


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [m for m in of_kind(manifests, kind) if m["metadata"]["name"] == name]
    return found


def pod_of(manifest: Manifest) -> Manifest:
    """The pod template's whole, of whatever makes pods."""
    spec = manifest["spec"]
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template: Manifest = spec["template"]
    return template


def pods(manifests: list[Manifest]) -> list[Manifest]:
    makers = of_kind(manifests, "Deployment", "StatefulSet", "Job", "CronJob")
    assert makers
    return [pod_of(manifest) for manifest in makers]


def containers(manifests: list[Manifest]) -> list[Manifest]:
    return [
        container
        for pod in pods(manifests)
        for container in (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
    ]


def values(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every mapping, with its value."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key, value
            yield from values(value)
    elif isinstance(tree, list):
        for each in tree:
            yield from values(each)


# --- Secrets ------------------------------------------------------------------


def secrets_created(page: str) -> dict[str, set[str]]:
    """Secrets and their keys, as the commands of a page create them."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    return {
        name: set(re.findall(r'--from-literal "?(\w+)=', rest))
        for name, rest in re.findall(r"kubectl create secret generic ([\w-]+)(.*)", text)
    }


def test_each_secret_key_is_one_that_the_documented_commands_create(
    manifests: list[Manifest],
) -> None:
    created = secrets_created("docs/kubernetes.md")
    for key, value in values(manifests):
        if key == "secretKeyRef":
            assert value["key"] in created[value["name"]]
        elif key == "secretRef":
            assert created[value["name"]]


def test_the_job_needs_no_secret_but_the_two_that_v1_has() -> None:
    readme = secrets_created("README.md")
    assert readme == {
        "postgres-secret": {"POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB"},
        "redis-secret": {"REDIS_PASSWORD"},
    }
    for key, value in values(job_file()):
        if key == "secretKeyRef" and not value.get("optional"):
            assert value["name"] == "postgres-secret"
        if key == "secretKeyRef" and value["name"] in readme:
            assert value["key"] in readme[value["name"]]


def test_the_database_s_operator_finds_the_secrets_that_it_names() -> None:
    created = secrets_created("docs/kubernetes.md")
    named_ = [
        value["name"]
        for key, value in values(rendered("cloudnativepg"))
        if key in {"secret", "passwordSecret"}
    ]
    assert len(named_) == 2
    for name in named_:
        assert created[name] == {"username", "password"}


def test_the_commands_read_what_stands_in_an_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("POSTGRES_USER=u\nPOSTGRES_PASSWORD=a=b$c'd\nPOSTGRES_DB=d\n")
    (tmp_path / "kubectl").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "kubectl").chmod(0o755)
    text = (ROOT / "README.md").read_text()
    command = re.search(
        r"kubectl create secret generic postgres-secret.*?\n(?=kubectl)", text, re.DOTALL
    )
    assert command is not None
    done = subprocess.run(
        ["/bin/sh", "-ec", command[0]],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "POSTGRES_PASSWORD=a=b$c'd" in done.stdout.splitlines()


def test_no_file_holds_a_secret(manifests: list[Manifest]) -> None:
    assert not of_kind(manifests, "Secret")
    for container in containers(manifests):
        for variable in container.get("env", ()):
            if re.search(r"PASSWORD|SECRET|TOKEN|API_KEY", variable["name"]):
                assert set(variable) == {"name", "valueFrom"}
    for config in of_kind(manifests, "ConfigMap"):
        assert not [name for name in config["data"] if re.search("PASSWORD|SECRET|TOKEN", name)]


# --- Pods ---------------------------------------------------------------------


def test_every_pod_keeps_to_the_restricted_standard(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not [v for v in spec.get("volumes", ()) if "hostPath" in v]
    for container in containers(manifests):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])


@pytest.mark.parametrize("files", ["overlays/local", "overlays/production", "the Job's alone"])
def test_what_is_mounted_is_there(files: str) -> None:
    manifests = rendered(files) if files.startswith("overlays") else job_file()
    claims = {m["metadata"]["name"] for m in of_kind(manifests, "PersistentVolumeClaim")}
    makers = of_kind(manifests, "Deployment", "StatefulSet", "Job", "CronJob")
    for maker in makers:
        spec = pod_of(maker)["spec"]
        own = {v["metadata"]["name"] for v in maker["spec"].get("volumeClaimTemplates", ())}
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= own | volumes
        for volume in spec.get("volumes", ()):
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims


def test_services_are_found_by_the_names_and_ports_that_are_given(
    manifests: list[Manifest],
) -> None:
    services = {m["metadata"]["name"]: m["spec"] for m in of_kind(manifests, "Service")}
    config = named(manifests, "ConfigMap", "cartrita-config")["data"]
    redis = services[config["REDIS_HOST"]]
    assert str(redis["ports"][0]["port"]) == config["REDIS_PORT"]
    job_environment = {
        variable["name"]: variable.get("value")
        for variable in pod_of(named(manifests, "Job", "db-migrate"))["spec"]["containers"][0][
            "env"
        ]
    }
    for name in ("POSTGRES_HOST", "POSTGRES_PORT", "REDIS_HOST"):
        assert job_environment[name] == config[name]
    if "postgres" in services:
        assert config["POSTGRES_HOST"] == "postgres"
        assert str(services["postgres"]["ports"][0]["port"]) == config["POSTGRES_PORT"]
    else:
        cluster = named(rendered("cloudnativepg"), "Cluster", "cartrita-db")
        # The operator names the service of the primary so.
        assert config["POSTGRES_HOST"] == f"{cluster['metadata']['name']}-rw"
        assert cluster["spec"]["instances"] == 3

    templates = pods(manifests)
    for spec in services.values():
        (pod,) = [
            p for p in templates if spec["selector"].items() <= p["metadata"]["labels"].items()
        ]
        ports = {
            port["name"]: port["containerPort"]
            for container in pod["spec"]["containers"]
            for port in container.get("ports", ())
        }
        assert {port["targetPort"] for port in spec["ports"]} <= set(ports)


def test_the_web_application_is_probed_spread_scaled_and_kept(manifests: list[Manifest]) -> None:
    pod = pod_of(named(manifests, "Deployment", "cartrita-web"))
    (web,) = pod["spec"]["containers"]
    assert web["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert web["readinessProbe"]["httpGet"]["path"] == "/readyz"
    ports = {port["name"] for port in web["ports"]}
    assert {web[p]["httpGet"]["port"] for p in ("livenessProbe", "readinessProbe")} <= ports
    labels = pod["metadata"]["labels"].items()
    spread = pod["spec"]["topologySpreadConstraints"]
    assert {constraint["topologyKey"] for constraint in spread} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    budget = named(manifests, "PodDisruptionBudget", "cartrita-web")["spec"]
    assert budget["minAvailable"] == 1
    for selecting in (budget["selector"], *(each["labelSelector"] for each in spread)):
        assert selecting["matchLabels"].items() <= labels
    scaler = named(manifests, "HorizontalPodAutoscaler", "cartrita-web")["spec"]
    assert (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]) == (
        "Deployment",
        "cartrita-web",
    )
    assert scaler["minReplicas"] < scaler["maxReplicas"]


@pytest.mark.parametrize(
    ("overlay", "servers"),
    [("local", {"cartrita-redis", "postgres"}), ("production", {"cartrita-redis"})],
)
def test_servers_keep_what_they_hold(overlay: str, servers: set[str]) -> None:
    stateful = of_kind(rendered(f"overlays/{overlay}"), "StatefulSet")
    assert {each["metadata"]["name"] for each in stateful} == servers
    for each in stateful:
        (claim,) = each["spec"]["volumeClaimTemplates"]
        (container,) = pod_of(each)["spec"]["containers"]
        assert claim["metadata"]["name"] in {m["name"] for m in container["volumeMounts"]}


def test_the_database_s_example_is_backed_up() -> None:
    example = rendered("cloudnativepg")
    (backup,) = of_kind(example, "ScheduledBackup")
    assert named(example, "Cluster", backup["spec"]["cluster"]["name"])["spec"]["instances"] == 3


def test_the_image_is_pinned_and_runs_as_the_user_of_the_manifests(
    manifests: list[Manifest],
) -> None:
    text = (ROOT / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert all(base.endswith("@${PYTHON_DIGEST}") for base in bases)
    assert "requirements-dev" not in text
    (user,) = re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)
    ours = [
        pod["spec"]
        for pod in pods(manifests)
        if any("cartrita-search:" in c["image"] for c in pod["spec"]["containers"])
    ]
    assert len(ours) == 8  # the Job, web, worker, and five at their times
    assert {str(spec["securityContext"]["runAsUser"]) for spec in ours} == {user}


def test_everything_is_in_v1_s_namespace_and_by_labels_of_ours(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "data-stack"
    for pod in pods(manifests):
        assert pod["metadata"]["labels"]["app.kubernetes.io/part-of"] == "cartrita-search"
    for policy in of_kind(manifests, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        # An empty one would cut off what v1 has in this namespace.
        assert selector.get("matchLabels") or selector.get("matchExpressions")
    default = named(manifests, "NetworkPolicy", "cartrita-default")["spec"]
    assert default["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in default


# --- Commands -----------------------------------------------------------------


def command_lines(container: Manifest) -> list[list[str]]:
    """Every ``manage.py`` command of a container, as its arguments."""
    command, args = container.get("command", []), container.get("args", [])
    if command[:2] == ["python", "manage.py"]:
        return [[*command[2:], *args]]
    script = "\n".join(args)
    lines = re.findall(r"(?:python manage\.py|\brun) (?!\"\$@\")([a-z_0-9]+\b[^;\n|>]*)", script)
    return [shlex.split(re.sub(r"\$\{\w+:\+([^}]*)\}", r"\1", line)) for line in lines]


def test_every_command_exists_and_takes_its_arguments(manifests: list[Manifest]) -> None:
    known = get_commands()
    found = [line for container in containers(manifests) for line in command_lines(container)]
    names = {line[0] for line in found}
    assert names >= {
        "migrate",
        "verify_migrations",
        "import_v1",
        "rebuild_vector_indexes",
        "refresh_keyword_statistics",
        "prune_search_history",
        "clearsessions",
        "backup_database",
        "sync_embeddings",
    }
    for name, *arguments in found:
        app = known[name]
        assert isinstance(app, str)
        parser: CommandParser = load_command_class(app, name).create_parser("manage.py", name)
        parser.parse_args(arguments)


def test_pods_of_the_application_wait_for_the_migrations(manifests: list[Manifest]) -> None:
    for name in ("cartrita-web", "cartrita-worker"):
        (init,) = pod_of(named(manifests, "Deployment", name))["spec"]["initContainers"]
        assert ["migrate", "--check"] in command_lines(init)


def test_only_what_needs_the_owner_of_the_tables_has_its_secret(manifests: list[Manifest]) -> None:
    owners = set()
    for maker in of_kind(manifests, "Deployment", "StatefulSet", "Job", "CronJob"):
        if ("name", "postgres-secret") in [
            (key, value) for key, value in values(maker) if isinstance(value, str)
        ]:
            owners.add(maker["metadata"]["name"])
    assert owners - {"postgres"} == {"db-migrate", "rebuild-vector-indexes", "backup-database"}


# --- The migration Job --------------------------------------------------------


def test_the_job_is_the_same_by_itself_and_in_the_base() -> None:
    assert (K8S / "job-db-migrate.yaml").resolve() == K8S / "base" / "job-db-migrate.yaml"


def test_the_job_ends_retries_and_waits_as_documented(manifests: list[Manifest]) -> None:
    job = named(manifests, "Job", "db-migrate")["spec"]
    pod = pod_of(named(manifests, "Job", "db-migrate"))["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert job["podReplacementPolicy"] == "Failed"
    assert {"backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"} <= set(job)
    actions = {
        code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", ())
        if rule["onExitCodes"]["operator"] == "In"
    }
    assert actions == {75: "Count", 130: "Count", 137: "Count", 143: "Count"}
    *_, last = job["podFailurePolicy"]["rules"]
    assert last["action"] == "FailJob"
    assert set(last["onExitCodes"]["values"]) == {0, *actions}
    ignored = [r for r in job["podFailurePolicy"]["rules"] if r["action"] == "Ignore"]
    assert ignored[0]["onPodConditions"] == [{"type": "DisruptionTarget"}]


@pytest.fixture(scope="module")
def server() -> Iterator[TcpPostgres]:
    # Not tmp_path, which pytest, also another one that begins meanwhile, closes to others.
    with (
        tempfile.TemporaryDirectory(prefix="cartrita-tcp-") as folder,
        tcp_postgres(Path(folder)) as started,
    ):
        yield started


def owner_secret(database: str = DATABASE) -> dict[str, dict[str, str]]:
    """The one Secret that there must be."""
    keys = {"POSTGRES_USER": ROLE, "POSTGRES_PASSWORD": PASSWORD, "POSTGRES_DB": database}
    return {"postgres-secret": keys}


def pod_environment(
    container: Manifest,
    secrets: dict[str, dict[str, str]],
    server: TcpPostgres,
    **variables: str,
) -> dict[str, str]:
    """What the pod would have, manifest's values and Secrets', but for where servers are.

    ``variables`` are set otherwise than there. No Redis answers unless they say where.
    """
    environment: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        if "configMapRef" in source:
            config = named(rendered("overlays/local"), "ConfigMap", source["configMapRef"]["name"])
            environment |= config["data"]
        else:
            reference = source["secretRef"]
            assert reference["name"] in secrets or reference["optional"] is True
            environment |= secrets.get(reference["name"], {})
    for variable in container.get("env", ()):
        if "value" in variable:
            environment[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            if reference["name"] in secrets:
                environment[variable["name"]] = secrets[reference["name"]][reference["key"]]
            else:
                assert reference["optional"] is True
    programs = [str(Path(sys.executable).parent), str(Path(client_program("pg_dump")).parent)]
    here = {
        "PATH": ":".join([*programs, os.environ["PATH"]]),
        "ENV_FILE": os.devnull,
        # A user without an entry in /etc/passwd has no folder of his own to write to.
        "HOME": os.devnull,
        "POSTGRES_HOST": "localhost",
        "POSTGRES_PORT": server.port,
        "REDIS_HOST": "localhost",
        "REDIS_PORT": "1",
    }
    return environment | here | variables


def job_container() -> Manifest:
    (container,) = pod_of(named(job_file(), "Job", "db-migrate"))["spec"]["containers"]
    return container  # type: ignore[no-any-return]


def job_environment(server: TcpPostgres, backups: Path, **variables: str) -> dict[str, str]:
    """The Job's with no Secret but the one that there must be."""
    variables = {"BACKUP_DIR": str(backups)} | variables
    return pod_environment(job_container(), owner_secret(), server, **variables)


def run_container(
    container: Manifest, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Its very command, to its end."""
    return subprocess.run(
        [*container["command"], *container.get("args", ())],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def run_job(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return run_container(job_container(), environment)


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
def test_the_job_s_own_command_with_the_secrets_variables(
    server: TcpPostgres, tmp_path: Path, encrypted: bool
) -> None:
    """Over TCP, with a password: backup, migrations, v1's rows, vector indexes."""
    name = f"{DATABASE} {'tls' if encrypted else 'plain'}"
    server.create_database(name)
    with server.connect_as_owner(name) as v1:
        make_v1(v1)
    backups = tmp_path / "backups"
    backups.mkdir()
    environment = job_environment(server, backups, POSTGRES_DB=name)
    if encrypted:
        programs = tls_programs(tmp_path)
        environment |= {"POSTGRES_SSL": "true", "POSTGRES_PORT": server.tls_port}
        environment["PATH"] = f"{programs}:{environment['PATH']}"

    done = run_job(environment | {"IMPORT_V1": "true", "IMPORT_V1_MODEL": "ada 002"})
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    with server.connect(name) as pg:
        assert scalar(pg, "SELECT count(*) FROM schema_migrations") > 9
        assert scalar(pg, "SELECT count(*) FROM auth_user") == len(PASSWORDS)
        models = "SELECT array_agg(DISTINCT embedding_model) FROM embeddings"
        assert scalar(pg, models) == ["ada 002"]
    # Taken before anything was changed.
    (backup,) = [path for path in backups.iterdir() if path.suffix == ".dump"]
    kept = subprocess.run(
        [client_program("pg_restore"), "--list", str(backup)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "TABLE DATA public knowledge_entries" in kept
    assert "schema_migrations" not in kept

    again = run_job(environment)
    assert again.returncode == 0, again.stderr
    # Nothing was to be applied, so nothing had to be kept.
    assert [path for path in backups.iterdir() if path.suffix == ".dump"] == [backup]


@pytest.mark.slow
def test_the_job_ends_by_75_while_another_process_migrates(
    server: TcpPostgres, tmp_path: Path
) -> None:
    container = job_container()
    (script,) = container["args"]
    assert "--wait 900" in script
    impatient = container | {"args": [script.replace("--wait 900", "--wait 0.1")]}
    with server.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        done = run_container(impatient, job_environment(server, tmp_path))
    assert done.returncode == 75, done.stderr
    assert "verify_migrations" not in done.stderr


@pytest.mark.slow
def test_the_job_passes_on_that_it_is_to_end(server: TcpPostgres, tmp_path: Path) -> None:
    """SIGTERM comes to the shell, and the command at work is what has to end."""
    container = job_container()
    with server.connect() as other:
        other.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
        with subprocess.Popen(
            [*container["command"], *container["args"]],
            cwd=ROOT,
            env=job_environment(server, tmp_path) | {"PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as job:
            assert job.stdout is not None
            said = ""
            for line in job.stdout:
                said += line
                if "Waiting for another migrator" in line:
                    job.terminate()
            # Whoever could still write there has ended.
        assert job.returncode == 143, said
    assert "verify_migrations" not in said


@pytest.mark.slow
def test_a_failure_ends_the_job_with_its_own_exit_code(
    server: TcpPostgres, tmp_path: Path
) -> None:
    environment = job_environment(server, tmp_path, POSTGRES_PASSWORD="wrong")
    done = run_job(environment)
    assert done.returncode not in (0, 75, 137, 143)
    assert "verify_migrations" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_migrate_through_a_port_forward(server: TcpPostgres) -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "migrate"],
        cwd=ROOT,
        env=server.environment
        | {"PATH": os.environ["PATH"], "ENV_FILE": os.devnull, "DEBUG": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with server.connect() as pg:
        assert scalar(pg, "SELECT count(*) FROM schema_migrations") > 9


# --- The application's own role ---------------------------------------------------


@pytest.fixture(scope="module")
def application(
    server: TcpPostgres, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """The Secrets of the application, whose role and database are as the manifests make them."""
    name = f"{DATABASE} of the application"
    server.create_database(name)
    keys = {"POSTGRES_USER": "cartrita app", "POSTGRES_PASSWORD": "a'p$p", "POSTGRES_DB": name}
    secrets = owner_secret(name) | {
        "postgres-app-secret": keys,
        "cartrita-secret": {"SECRET_KEY": "k" * 50},
    }
    init = named(rendered("overlays/local"), "ConfigMap", "postgres-init")["data"]
    subprocess.run(
        ["/bin/sh", "-ec", init["application-role.sh"]],
        env={
            "PATH": f"{Path(client_program('psql')).parent}:{os.environ['PATH']}",
            "PGHOST": str(server.server.socket.parent),
            "PGPORT": server.port,
            "POSTGRES_USER": "postgres",
            "POSTGRES_DB": name,
            "APP_USER": keys["POSTGRES_USER"],
            "APP_PASSWORD": keys["POSTGRES_PASSWORD"],
        },
        check=True,
    )
    backups = str(tmp_path_factory.mktemp("backups"))
    environment = pod_environment(job_container(), secrets, server, BACKUP_DIR=backups)
    done = run_job(environment)
    assert done.returncode == 0, done.stderr
    return secrets


@pytest.mark.slow
def test_the_application_s_role_may_do_all_that_is_asked_of_it(
    server: TcpPostgres, application: dict[str, dict[str, str]]
) -> None:
    """Whatever has its Secret: what waits for the migrations, the nightly work, the worker."""
    keys = application["postgres-app-secret"]
    with server.connect(keys["POSTGRES_DB"]) as pg, embedding_server() as service:
        pg.execute(
            "INSERT INTO search_documents (source_table, source_id, title, content)"
            " VALUES ('notes', '1', 'Tea', 'Steep green tea for two minutes.')"
        )
        ran = set()
        for maker in of_kind(rendered("overlays/local"), "Deployment", "CronJob"):
            spec = pod_of(maker)["spec"]
            for container in (*spec.get("initContainers", ()), *spec["containers"]):
                has_it = ("name", "postgres-app-secret") in list(values(container["envFrom"]))
                if not has_it or "command" not in container:
                    continue  # the image's own command has a test below
                args = container.get("args", [])
                if container["name"] == "worker":
                    assert args[:2] == ["--watch", "10"]
                    args = args[2:]  # or it would not end
                options = {"model": "hosted", "dimensions": 8, "base_url": service.url}
                done = run_container(
                    container | {"args": args},
                    pod_environment(
                        container,
                        application | {"embedder-secret": {"OPENAI_API_KEY": KEY}},
                        server,
                        EMBEDDER_OPTIONS=json.dumps(options),
                    ),
                )
                assert done.returncode == 0, (maker["metadata"]["name"], done.stderr)
                ran.add((maker["metadata"]["name"], container["name"]))
        assert len(ran) == 6
        assert scalar(pg, "SELECT count(*) FROM embeddings") == 1
        assert scalar(pg, "SELECT documents FROM keyword_corpora") == 1


# --- The image's command --------------------------------------------------------


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Redis by its StatefulSet's command, with a password; the variables that lead to it."""
    password, port = 'a"b\\c$d', free_port()
    stateful = named(rendered("overlays/local"), "StatefulSet", "cartrita-redis")
    (container,) = pod_of(stateful)["spec"]["containers"]
    (script,) = container["args"]
    assert "dir /data\n" in script
    here = f"dir {tmp_path_factory.mktemp('redis')}\nport {port}\nbind 127.0.0.1\n"
    with subprocess.Popen(
        [*container["command"], script.replace("dir /data\n", here)],
        env={"PATH": os.environ["PATH"], "REDIS_PASSWORD": password},
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            patient = Retry(ConstantBackoff(0.05), 1200)
            with Redis(port=int(port), password=password, retry=patient) as client:
                assert client.ping()
                assert client.config_get("maxmemory-policy") == {
                    "maxmemory-policy": "volatile-ttl"
                }
            yield {"REDIS_PORT": port, "REDIS_PASSWORD": password}
        finally:
            process.terminate()
    assert process.returncode == 0  # it was told to end, not the shell before it


ADMIN = """
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.test.utils import setup_test_environment
from django.urls import reverse

setup_test_environment()
User.objects.create_superuser("ada", password="secret")
site = Client(headers={"host": "localhost", "x-forwarded-proto": "https"})
assert site.login(username="ada", password="secret")
pages = ["admin:index"]
pages += [
    f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"
    for model in admin.site._registry
]
for page in pages:
    assert site.get(reverse(page), follow=True).status_code == 200, page
page = site.get(reverse("admin:cartrita_search_searchsettings_change", args=[1]))
form = page.context["adminform"].form
given = {name: form[name].value() or "" for name in form.fields}
answer = site.post(page.request["PATH_INFO"], given | {"rrf_k": 61})
assert answer.status_code == 302, answer.context["errors"]
"""


@pytest.mark.slow
def test_the_image_s_command_serves_its_probes(
    server: TcpPostgres,
    application: dict[str, dict[str, str]],
    redis: dict[str, str],
    tmp_path: Path,
) -> None:
    """gunicorn as the Dockerfile starts it, with settings as in production."""
    text = (ROOT / "Dockerfile").read_text()
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    arguments = [
        "--bind=127.0.0.1:0" if argument.startswith("--bind") else argument
        for argument in json.loads(command)
    ]
    deployment = named(rendered("overlays/local"), "Deployment", "cartrita-web")
    (container,) = pod_of(deployment)["spec"]["containers"]
    environment = pod_environment(
        container,
        application | {"redis-secret": {"REDIS_PASSWORD": redis["REDIS_PASSWORD"]}},
        server,
        REDIS_PORT=redis["REDIS_PORT"],
        STATIC_ROOT=str(tmp_path / "static"),
    )
    for step in (["collectstatic", "--noinput"], ["shell", "--verbosity=0", "-c", ADMIN]):
        done = subprocess.run(
            [sys.executable, "manage.py", *step],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    said = ""
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said += line
            if found := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise AssertionError(said)
        site = HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        assert get(site, "/healthz") == (200, {"status": "ok"})
        # A probe is answered in two seconds, ready or not, and comes again.
        deadline = time.monotonic() + 60
        while (ready := get(site, "/readyz"))[0] != 200:
            assert time.monotonic() < deadline, ready
        assert set(ready[1]["checks"].values()) == {"ok"}
        assert "redis" in ready[1]["checks"]
        # A person comes by HTTPS, which the ingress ends; and the page's style is there.
        headers = {"Host": "localhost", "X-Forwarded-Proto": "https"}
        site.request("GET", "/admin/login/", headers=headers)
        page = site.getresponse()
        assert page.status == 200
        style = re.search(r'href="(/static/admin/css/base\.\w+\.css)"', page.read().decode())
        assert style is not None
        site.request("GET", style[1], headers=headers)
        with site.getresponse() as answer:
            assert answer.status == 200
        site.close()
    finally:
        process.terminate()
        said += process.communicate(timeout=60)[1]
    assert process.returncode == 0
    # It may write nowhere but to /tmp, and wants to nowhere else.
    assert "[ERROR]" not in said


def get(site: HTTPConnection, path: str) -> tuple[int, Any]:
    """The status, and what the JSON says."""
    site.request("GET", path)
    answer = site.getresponse()
    return answer.status, json.loads(answer.read())
