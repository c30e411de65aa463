"""The lab's agent, a process of its own; see `__main__`.  The lab talks to it by `tests.lab.probe`."""
