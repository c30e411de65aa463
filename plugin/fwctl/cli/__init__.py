"""fwctl's command line: arguments, requests to the plugin's socket, and output as text, colours or JSON.

It touches only the socket. The commands that need no running docker-fw (`dry-run`, `boot`, `cleanup`, `check`) are in
`fwctl.host` and `fwctl.check`, which are imported when they run: `fwctl status` must start at once.
"""
