"""Tests of plugin/kernel, a file for each module."""
