"""`fwctl check`: what a compose file would open, and its mistakes with file and line.

It reads the files that it is given, and those that they include, and nothing else: no Docker, no kernel. Labels and
policies are read by the plugin's own code, so that both always agree.
"""
