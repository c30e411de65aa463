"""fwctl's work on the host without a running docker-fw: the boot table and its unit, `cleanup`, `dry-run`.

It writes below /etc/docker-fw and /etc/systemd, each file atomically; a running sidecar keeps the boot table
current. `cleanup` touches docker-fw's tables, links and rule in DOCKER-USER; `dry-run` only reads.
"""
