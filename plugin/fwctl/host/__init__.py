"""What fwctl does on the host without the plugin: dry run, cleanup, the table that closes before Docker starts.

`dry_run` only reads. `cleanup` removes docker-fw's tables, rules and links. `boot*` write below /etc/docker-fw and
/etc/systemd, each file atomically; a running sidecar keeps the table's file current.
"""
