# The team's tracking server: MLflow behind accounts, on PostgreSQL or on a SQLite file. Neither torch nor Ray is in it.
#
#     docker build -f docker/tracking.Dockerfile -t conclave-tracking .
ARG BASE=docker.io/library/debian:bookworm-20250520-slim

FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PATH=/opt/conclave/bin:$PATH PYTHONUNBUFFERED=1
COPY pyproject.toml README.md requirements.lock /usr/src/conclave/
COPY conclave /usr/src/conclave/conclave
COPY orchestrator /usr/src/conclave/orchestrator
COPY fusion /usr/src/conclave/fusion
COPY workers /usr/src/conclave/workers
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 --shell /bin/bash conclave \
    && install --directory --owner conclave --group conclave /srv/tracking \
    && python3 -m venv /opt/conclave \
    && pip install --no-cache-dir --disable-pip-version-check --constraint /usr/src/conclave/requirements.lock \
        "mlflow[auth]" "psycopg[binary]" typer rich pydantic ruamel.yaml filelock packaging boto3 \
    && pip install --no-cache-dir --disable-pip-version-check --no-deps /usr/src/conclave
USER 1000
WORKDIR /srv/tracking
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 5000, timeout=4); c.request('GET', '/health'); assert c.getresponse().status in (200, 401)"]
CMD ["conclave", "server", "--home", "/srv/tracking", "--host", "0.0.0.0"]
