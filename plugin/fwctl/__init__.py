"""fwctl, the operator's tool, in four parts, of which only `api` runs inside the plugin.

`api` answers on the plugin's socket. `cli` is the command line. `check` judges compose files without any Docker.
`host` touches the host while no docker-fw runs: the table at boot.
"""
