"""`fwctl check`: what a compose file would open, and its mistakes with file and line. It reads files, nothing else."""
