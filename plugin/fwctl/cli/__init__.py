"""fwctl's command line: arguments, requests to the plugin's socket, and output as text, colours or JSON.

It speaks to the socket and touches nothing else, but for the commands that need no running docker-fw (`dry-run`,
`boot`, `cleanup`, `check`). These load what they need when they run: `fwctl status` must start at once.
"""
