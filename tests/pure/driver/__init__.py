"""Tests of plugin/driver, a file for each module."""
