"""Reading compose files: YAML with positions, variables, merging, the forms that values may have."""
