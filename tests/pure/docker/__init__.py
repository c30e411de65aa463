"""Tests of plugin/docker, a file for each module."""
