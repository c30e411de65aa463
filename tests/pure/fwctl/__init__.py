"""Tests of plugin/fwctl, a file for each module."""
