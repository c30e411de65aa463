# docker-fw: one image, used as a managed plugin's root file system and as a sidecar.
# Debian's Python, so that libnftables' own bindings fit it; everything from PyPI is locked with hashes.

FROM debian:trixie-slim AS base
# iptables: the one rule in Docker's DOCKER-USER chain, in the variant (nft or legacy) that the host's dockerd uses.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-nftables iptables \
 && rm -rf /var/lib/apt/lists/* /var/cache/debconf/* /var/log/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/* \
 && mkdir -p /run/docker/plugins /var/lib/docker-fw /host/run /host/cgroup /host/proc/sys/net

FROM base AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock ./
# The bindings of libnftables come from Debian, hence the system's packages in the environment.
RUN python3 -m venv --system-site-packages /opt/docker-fw \
 && /opt/docker-fw/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY plugin plugin
# Only what runs stays: no installer, no sources of the wheel, no tests of the libraries.
RUN /opt/docker-fw/bin/pip install --no-cache-dir --no-deps . \
 && /opt/docker-fw/bin/pip uninstall -y pip \
 && find /opt/docker-fw -depth \( -name tests -o -name test \) -type d -exec rm -rf {} + \
 && /opt/docker-fw/bin/python -m compileall -q /opt/docker-fw/lib

FROM base
COPY --from=build /opt/docker-fw /opt/docker-fw
# MALLOC_ARENA_MAX: glibc otherwise keeps a heap for each thread, megabytes that no thread uses.
ENV MALLOC_ARENA_MAX=2 \
    PATH=/opt/docker-fw/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    XTABLES_LOCKFILE=/host/run/xtables.lock \
    PYTHONUNBUFFERED=1
LABEL org.opencontainers.image.title="docker-fw" \
      org.opencontainers.image.description="A firewall for Docker hosts: blocks inbound traffic to containers, IPv4 and IPv6, except on ports you allow" \
      org.opencontainers.image.licenses="MIT"
ENTRYPOINT ["/opt/docker-fw/bin/fwctl"]
CMD ["serve"]
