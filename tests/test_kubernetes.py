"""The manifests: what they promise, and the migration Job's very command run for real."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands, load_command_class
from django.core.management.base import CommandParser

from cartrita.embedded.postgres import client_program

from .postgres import scalar
from .tcp_postgres import PASSWORD, TcpPostgres, tcp_postgres

ROOT: Path = settings.BASE_DIR
K8S = ROOT / "k8s"
OVERLAYS = ("local", "production")
Manifest = dict[str, Any]


def rendered(overlay: str) -> list[Manifest]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(K8S / "overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(request.param)


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
    job = yaml.safe_load((K8S / "job-db-migrate.yaml").read_text())
    for key, value in values(job):
        if key == "secretKeyRef" and not value.get("optional"):
            assert value["name"] == "postgres-secret"
        if key == "secretKeyRef" and value["name"] in readme:
            assert value["key"] in readme[value["name"]]


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


def test_what_is_mounted_is_there(manifests: list[Manifest]) -> None:
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
        cluster, *_ = yaml.safe_load_all((K8S / "cloudnativepg" / "cluster.yaml").read_text())
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
    assert actions == {75: "Count", 137: "Count", 143: "Count"}
    *_, last = job["podFailurePolicy"]["rules"]
    assert last["action"] == "FailJob"
    assert set(last["onExitCodes"]["values"]) == {0, *actions}
    ignored = [r for r in job["podFailurePolicy"]["rules"] if r["action"] == "Ignore"]
    assert ignored[0]["onPodConditions"] == [{"type": "DisruptionTarget"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpPostgres]:
    with tcp_postgres(tmp_path_factory.mktemp("tcp")) as started:
        yield started


def job_environment(server: TcpPostgres, backups: Path, **variables: str) -> dict[str, str]:
    """What the pod would have: the manifest's values, and the Secrets'."""
    (container,) = pod_of(yaml.safe_load((K8S / "job-db-migrate.yaml").read_text()))["spec"][
        "containers"
    ]
    given = server.environment | {"BACKUP_DIR": str(backups)} | variables
    environment = {}
    for variable in container["env"]:
        name = variable["name"]
        if name in given:
            environment[name] = given[name]
        elif "value" in variable:
            environment[name] = variable["value"]
        else:
            # Everything else comes of Secrets that there need not be.
            assert variable["valueFrom"]["secretKeyRef"]["optional"] is True
    programs = [str(Path(sys.executable).parent), str(Path(client_program("pg_dump")).parent)]
    return (
        environment
        | variables
        | {
            "PATH": ":".join([*programs, os.environ["PATH"]]),
            "ENV_FILE": os.devnull,
            # There is no Redis by that name here.
            "REDIS_HOST": "",
        }
    )


def run_job(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    (container,) = pod_of(yaml.safe_load((K8S / "job-db-migrate.yaml").read_text()))["spec"][
        "containers"
    ]
    return subprocess.run(
        [*container["command"], *container["args"]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_job_s_own_command_with_the_secrets_variables(
    server: TcpPostgres, tmp_path: Path
) -> None:
    """Over TCP, with a password; first without TLS, then again with it."""
    backups = tmp_path / "backups"
    backups.mkdir()
    with server.connect() as pg:
        pg.execute("CREATE TABLE of_v1 (id integer)")
        pg.execute("ALTER TABLE of_v1 OWNER TO cartrita")

        done = run_job(job_environment(server, backups))
        assert done.returncode == 0, done.stderr
        assert scalar(pg, "SELECT count(*) FROM schema_migrations") > 9
        # Taken before anything was changed.
        assert [path for path in backups.iterdir() if path.suffix == ".dump"]
        assert PASSWORD not in done.stdout + done.stderr

        encrypted = {"POSTGRES_SSL": "true", "POSTGRES_PORT": server.tls_port}
        again = run_job(job_environment(server, backups, **encrypted))
        assert again.returncode == 0, again.stderr
        # Nothing was to be applied, so nothing had to be kept.
        assert len([path for path in backups.iterdir() if path.suffix == ".dump"]) == 1


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


# --- The image's command --------------------------------------------------------


@pytest.mark.slow
def test_the_image_s_command_serves_its_probes(server: TcpPostgres, tmp_path: Path) -> None:
    """gunicorn as the Dockerfile starts it, with settings as in production."""
    text = (ROOT / "Dockerfile").read_text()
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    arguments = [
        "--bind=127.0.0.1:0" if argument.startswith("--bind") else argument
        for argument in json.loads(command)
    ]
    environment = job_environment(server, tmp_path) | {
        "SECRET_KEY": "k" * 50,
        "ALLOWED_HOSTS": "localhost",
        "TRUST_X_FORWARDED_PROTO": "true",
        "STATIC_ROOT": str(tmp_path / "static"),
    }
    for step in ("collectstatic --noinput", "migrate --noinput"):
        subprocess.run(
            [sys.executable, "manage.py", *step.split()],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            check=True,
        )
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise AssertionError(said)
        site = HTTPConnection("127.0.0.1", int(found[1]), timeout=60)
        for path in ("/healthz", "/readyz"):
            site.request("GET", path)
            answer = site.getresponse()
            assert (path, answer.status, answer.read() != b"") == (path, 200, True)
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
        process.communicate(timeout=60)
    assert process.returncode == 0
