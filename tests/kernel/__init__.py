"""The kernel tier: the plugin's packages against the real kernel, in separate network namespaces, with real packets."""
