"""vLLM's AsyncLLM behind the engine's protocol.

`interface` is the one place that imports vLLM, and only when an engine starts; `translation` turns a request into what
vLLM takes and what it gives out into events, without importing it; `seats` says who is handed over; `engine` puts them
together. Written against vLLM 0.32.0, whose names and signatures are recorded in tests/contract/engines.

What vLLM does not tell is not made up: it gives out finished canvases, without the steps they took or why they stopped,
so those are 0 and `unknown` here.
"""
