"""The process: what is built from what, its threads, its start before anyone can reach the socket, and its end."""
