"""Checkpoints that come with the package, one folder each, served as `embedded:NAME`."""
