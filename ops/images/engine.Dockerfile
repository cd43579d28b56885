# What runs on workers: Ray, Easel with its engine, torch. Also fit for the head, the autoscaler, downloads and tests.
# With EXTRAS=serve,vllm and CONSTRAINTS=constraints-vllm.txt: the same with vLLM's engine.
# ops/images/README.md says how it is built and signed. No weights: they are mounted.

# Air-gapped sites name their mirror here, by digest; so should everybody for a release.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# Empty: where pip looks anyway.
ARG PIP_INDEX_URL
# Where torch comes from, such as an index of CPU wheels. Empty: PIP_INDEX_URL. On x86-64 that build brings CUDA along.
ARG TORCH_INDEX_URL
# Extras of easel-serve, and the versions of everything.
ARG EXTRAS=serve,gpu
ARG CONSTRAINTS=constraints.txt
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_CONSTRAINT=/src/${CONSTRAINTS}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
COPY constraints.txt constraints-vllm.txt ./
RUN python -m venv /opt/easel \
 && torch="$(grep '^torch==' "${CONSTRAINTS}")" \
 && /opt/easel/bin/pip install ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} "${torch}"
COPY pyproject.toml README.md LICENSE ./
COPY platform platform
RUN /opt/easel/bin/pip install ".[${EXTRAS}]" \
 && /opt/easel/bin/pip check \
 && /opt/easel/bin/python -c 'import easel.rayserve.app, torch' \
 && /opt/easel/bin/pip uninstall --yes pip setuptools \
 && find /opt/easel -name __pycache__ -prune -exec rm -r {} +

FROM ${BASE_IMAGE}
# Empty: Debian's own. Otherwise the address that takes its place.
ARG APT_MIRROR
# bash and wget: KubeRay's probes. gcc: Triton builds a launcher for each kernel when it is first used.
# profile.d: a login shell, which an operator may choose for KubeRay, forgets the image's PATH.
# hadolint ignore=DL3008,SC2016
RUN if [ -n "${APT_MIRROR}" ]; then sed -i "s|^URIs: [a-z]*://[^/]*|URIs: ${APT_MIRROR}|" /etc/apt/sources.list.d/debian.sources; fi \
 && apt-get update \
 && apt-get install --yes --no-install-recommends bash wget gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 easel \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin easel \
 && echo 'PATH=/opt/easel/bin:$PATH' > /etc/profile.d/easel.sh
COPY --from=build /opt/easel /opt/easel
# The first two: without a CUDA base, the container runtime has to be told to bring the driver's libraries.
ENV NVIDIA_VISIBLE_DEVICES=void \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PATH=/opt/easel/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    HF_HUB_DISABLE_TELEMETRY=1
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="easel" \
      org.opencontainers.image.description="Serves block text-diffusion language models on Ray Serve: workers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
USER 10001:10001
WORKDIR /tmp
CMD ["easel", "--help"]
