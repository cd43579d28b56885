"""Pure decisions about work: no Ray, no torch, no HTTP, and time is an argument."""
