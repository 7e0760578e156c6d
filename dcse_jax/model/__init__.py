"""The encoder as pure functions: from token ids to states and embeddings.

Doors: `encoder` (the module, its poolings and heads), `packing` (batches without their
padding), `chunks` (batches part by part).
"""
