"""fwctl, the operator's tool, in four parts, of which only `api` runs inside the plugin.

`api` answers on the plugin's socket. `cli` is the command line. `check` judges compose files without Docker. `host`
works on the host without the plugin: the dry run, the cleanup, the table at boot.
"""
