"""Tests of plugin/state, a file for each module."""
