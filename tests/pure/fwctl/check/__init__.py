"""Tests of plugin/fwctl/check, a file for each module."""
