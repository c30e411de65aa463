"""The kernel tier: the plugin's rooms against the real kernel, in network namespaces of our own, with real packets."""
