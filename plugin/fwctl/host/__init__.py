"""What fwctl does to the host while no docker-fw runs: the firewall at boot. It touches /etc and docker-fw's tables."""
