"""The lab's agent, a process of its own; see `__main__`. The lab uses it through `tests.lab.probe`."""
