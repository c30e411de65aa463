"""Tests of plugin/labels, a file for each module."""
