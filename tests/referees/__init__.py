"""Referees: programs that this project did not write attack the real product, and what they reach is compared."""
