"""The OpenAI-compatible edge: HTTP in, generation requests out, events back as JSON or server-sent events.

It knows text, tokenizer and chat template; no replica, no Ray, no tensor.
"""
