"""Tests of plugin/nftables, a file for each module."""
