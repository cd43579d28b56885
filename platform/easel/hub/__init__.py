"""Checkpoints by their name on a model hub.

`reference` says what such a name is and where it lies once it was fetched, `fetching` fetches it, `resumed` is how one
large file comes. All that speaks to a hub is the huggingface_hub library, with what it reads from the environment:
HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, and HF_HOME for where the cache is.
"""
