"""fwctl, the operator's tool: its side in the plugin (`api`), the command line (`cli`), what it does to the
host without a running docker-fw (`host`), and the check of compose files (`check`).
"""
