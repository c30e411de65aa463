"""Referees: rules and cases from outside this project, against which docker-fw is compared."""
