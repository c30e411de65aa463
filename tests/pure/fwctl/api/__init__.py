"""Tests of plugin/fwctl/api, a file for each module."""
