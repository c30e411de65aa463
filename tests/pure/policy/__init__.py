"""Tests of plugin/policy, a file for each module."""
