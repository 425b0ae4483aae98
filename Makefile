# `make help` lists the targets.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NODE_STAMP := tests/node/node_modules/.installed
PEERS := tests/benchmarks/requirements-peers.txt
PEERS_STAMP := .bench-venv/.installed
# command=Debian's package
SYSTEM_PACKAGES := pgbouncer=pgbouncer redis-server=redis-server redis-sentinel=redis-sentinel \
    chromium=chromium chromedriver=chromium-driver kubectl=kubernetes-client
CHECKOV_STAMP := .checkov-venv/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo packages test lint types check manifests bench freeze stop clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv and install all that development needs

$(STAMP): requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(NODE_STAMP): tests/node/package.json
	npm install --prefix tests/node --no-audit --no-fund --loglevel=error
	touch $@

demo: export DEBUG := true
demo: $(STAMP)  ## a database of real text, and real questions put to it
	$(BIN)/python manage.py embedded start
	$(BIN)/python manage.py migrate
	$(BIN)/python manage.py demo $(ARGS)

# Servers and a browser that tests start and no package of PyPI brings. Looked for by the
# command, so that other systems' packages do as well.
packages:
	@missing=; for pair in $(SYSTEM_PACKAGES); do \
	    command -v $${pair%%=*} >/dev/null || missing="$$missing $${pair#*=}"; \
	done; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	    apt-get -qq install --no-install-recommends -y $$missing >/dev/null; \
	else \
	    echo "The tests need:$$missing. Install these, and run make test again." >&2; exit 1; \
	fi

test: $(STAMP) $(NODE_STAMP) packages  ## the whole suite, against real servers (ARGS="-k name" is passed on)
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile $(ARGS)

.PHONY: pooler
# In transaction mode. Two processes, as CI has two cores.
pooler: $(STAMP) packages  ## searches and the admin once more, through PgBouncer
	$(BIN)/python -m pytest --pooler -n 2 --dist loadfile \
	    tests/test_retrieval.py tests/test_retrieval_options.py tests/test_admin.py $(ARGS)

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy with the Django plugin
	$(BIN)/mypy

check: $(STAMP)  ## what Django itself can check: migrations and deployment settings
	DEBUG=true $(BIN)/python manage.py makemigrations --check --dry-run
	DEBUG=false ALLOWED_HOSTS=localhost \
	SECRET_KEY=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(50))') \
	$(BIN)/python manage.py check --deploy --fail-level WARNING

$(PEERS_STAMP): $(PEERS)
	$(PYTHON) -m venv .bench-venv
	.bench-venv/bin/python -m pip install --quiet --disable-pip-version-check -r $(PEERS)
	touch $@

# The packages that this one is compared with are installed only to be measured.
bench: $(STAMP) $(if $(filter peers,$(or $(ARGS),peers)),$(PEERS_STAMP))
bench:  ## the measurements under tests/benchmarks (ARGS="peers growth" names some)
	$(BIN)/python -m tests.benchmarks $(ARGS)

$(CHECKOV_STAMP): tests/requirements-checkov.txt
	$(PYTHON) -m venv .checkov-venv
	.checkov-venv/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# No cluster and no container engine are needed.
manifests: $(STAMP) $(CHECKOV_STAMP) packages  ## Dockerfile and Kubernetes manifests: schema, security, lint
	$(BIN)/hadolint Dockerfile
	rendered=$$(mktemp -d) && trap 'rm -rf "$$rendered"' EXIT && cp Dockerfile "$$rendered" && \
	for overlay in local production; do \
	    kubectl kustomize k8s/overlays/$$overlay > "$$rendered/$$overlay.yaml" || exit 1; \
	    $(BIN)/kubernetes-validate --strict --quiet "$$rendered/$$overlay.yaml" || exit 1; \
	done && \
	.checkov-venv/bin/checkov --config-file k8s/checkov.yaml --directory "$$rendered"

freeze: $(STAMP)  ## write the SHA-256 of the SQL files down, when they are released
	$(BIN)/python -m tests.freeze_sql $(ARGS)

stop: export DEBUG := true
stop: $(STAMP)  ## stop the embedded servers
	$(BIN)/python manage.py embedded stop

clean:  ## remove what is made by the targets above; the embedded data with it
	@if [ -x $(BIN)/python ]; then DEBUG=true $(BIN)/python manage.py embedded stop; fi
	rm -rf .venv .bench-venv .checkov-venv .embedded .pytest_cache .mypy_cache .ruff_cache .hypothesis staticfiles
	rm -rf tests/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
