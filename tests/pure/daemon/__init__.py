"""Tests of plugin/daemon, a file for each module."""
