"""fwctl, the operator's tool, in four parts, of which only `api` runs inside the plugin.

`api` answers on the plugin's socket. `cli` is the command line. `check` judges compose files without Docker.
`host` is what works on the host without a running docker-fw, and touches it: the boot table, `cleanup`, `dry-run`.
"""
