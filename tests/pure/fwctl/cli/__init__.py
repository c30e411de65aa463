"""Tests of plugin/fwctl/cli, a file for each module."""
