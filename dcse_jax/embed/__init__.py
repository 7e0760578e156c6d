"""Embeddings of sentences, and their nearest neighbours.

Doors: `sentence_encoder` (the class that users know), `neighbours` (exact and faiss, in
memory), `index_build` and `index_folder` (beyond memory).
"""
