# What runs on the head: Ray and Easel's decisions, without an engine and torch. For `head.image` of the chart; the
# engine's image does as well there, but is some gigabytes larger.

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Empty: where pip looks anyway.
ARG PIP_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/src/constraints.txt
WORKDIR /src
COPY constraints.txt ops/images/head.txt ./
RUN python -m venv /opt/easel \
 && /opt/easel/bin/pip install --requirement head.txt
COPY pyproject.toml README.md LICENSE ./
COPY platform platform
RUN /opt/easel/bin/pip install . \
 && /opt/easel/bin/pip check \
 && /opt/easel/bin/python -c 'import easel.rayserve.app, easel.rayserve.autoscaling, easel.rayserve.request_router' \
 && /opt/easel/bin/pip uninstall --yes pip setuptools \
 && find /opt/easel -name __pycache__ -prune -exec rm -r {} +

FROM ${BASE_IMAGE}
# Empty: Debian's own. Otherwise the address that takes its place.
ARG APT_MIRROR
# bash and wget: KubeRay's probes.
# profile.d: a login shell, which an operator may choose for KubeRay, forgets the image's PATH.
# hadolint ignore=DL3008,SC2016
RUN if [ -n "${APT_MIRROR}" ]; then sed -i "s|^URIs: [a-z]*://[^/]*|URIs: ${APT_MIRROR}|" /etc/apt/sources.list.d/debian.sources; fi \
 && apt-get update \
 && apt-get install --yes --no-install-recommends bash wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 easel \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin easel \
 && echo 'PATH=/opt/easel/bin:$PATH' > /etc/profile.d/easel.sh
COPY --from=build /opt/easel /opt/easel
ENV PATH=/opt/easel/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    HF_HUB_DISABLE_TELEMETRY=1
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="easel-head" \
      org.opencontainers.image.description="Serves block text-diffusion language models on Ray Serve: the head" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
WORKDIR /tmp
CMD ["easel", "--help"]
