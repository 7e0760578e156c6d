"""The encoder as pure functions: from token ids to states and embeddings.

Doors: `encoder` (the entry points, for every family), `bert` and `rotary` (modules of
families), `attention` and `stack` (what all of them run), `pooling` and `heads` (what
comes after), `model` (an encoder with its tokenizer and all that turns text into
embeddings), `inference` (many sentences), `packing` (batches without their padding),
`chunks` (batches part by part).
"""
