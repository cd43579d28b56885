"""Decides who is admitted, what goes together, where it runs and how many replicas there are.

Pure decisions: no Ray, no torch, no HTTP, and time is an argument, so that tests and the simulator run on virtual time
the very classes that serve. Everything is measured in units of work (`easel.protocol.GROUP_ROWS`).
"""
