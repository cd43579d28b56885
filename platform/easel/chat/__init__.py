"""A chat with a running service as a terminal shows it: client, canvases, boards and commands; no engine, no server."""
