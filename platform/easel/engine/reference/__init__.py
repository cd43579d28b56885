"""transformers' own DiffusionGemma behind the engine's protocol: the oracle.

What it answers is what `DiffusionGemmaForBlockDiffusion.generate` answers, because that is what runs: `checkpoint`
loads the model, `decoding` runs `generate` for one request and turns what it shows on the way into events, `engine`
puts a queue and a thread around that. One request at a time: transformers has one source of chance for a whole batch,
so answers would depend on their company.

For checking the native engine's answers and for trying a checkpoint, not for serving many.
"""
