"""Tests of plugin/fwctl/host, a file for each module."""
