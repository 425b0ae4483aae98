# The digest is asked for, not guessed: the same digest builds the same image.
#   docker build --build-arg PYTHON_DIGEST="$(docker buildx imagetools inspect \
#     python:3.13-slim-trixie --format '{{.Manifest.Digest}}')" -t cartrita-search:dev .
ARG PYTHON_DIGEST

# --- What needs pip, and is not in the image that runs ---
FROM docker.io/library/python:3.13-slim-trixie@${PYTHON_DIGEST} AS build

RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --requirement /tmp/requirements.txt

# --- What runs ---
FROM docker.io/library/python:3.13-slim-trixie@${PYTHON_DIGEST}

# pg_dump and pg_restore must be as new as the server. Debian has those of 17; the script
# of Debian's postgresql-common adds the PostgreSQL project's own repository and its key.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends postgresql-common ca-certificates \
    && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y \
    && apt-get install --yes --no-install-recommends postgresql-client-18 \
    && apt-get purge --yes --auto-remove postgresql-common \
    && rm -rf /var/lib/apt/lists/*

COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/lib/postgresql/18/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ENV_FILE=/dev/null

WORKDIR /app
COPY manage.py ./
COPY cartrita ./cartrita
COPY cartrita_search ./cartrita_search

# The key signs nothing: collecting files takes settings, and settings a key. Bytecode is
# compiled here, for nothing can be written to where it runs.
RUN SECRET_KEY=unused-while-building python manage.py collectstatic --noinput \
    && python -m compileall -q cartrita cartrita_search

USER 10001:10001
EXPOSE 8000
CMD ["gunicorn", "cartrita.wsgi:application", "--bind=0.0.0.0:8000", "--workers=2", "--threads=4", "--worker-tmp-dir=/tmp", "--no-control-socket", "--graceful-timeout=30", "--access-logfile=-"]
