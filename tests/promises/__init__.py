"""What Docker promises about its networks, in our own words, tried without docker-fw and with it."""
