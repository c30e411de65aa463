"""The families of cases. Each module registers some; importing this package registers all."""

from tests.referees.networkpolicy.families import fragments, own, shapes, stacks, stories

__all__ = ["fragments", "own", "shapes", "stacks", "stories"]
