"""Embeddings of sentences, and their nearest neighbours.

Doors: `sentence_encoder` (the class that users know), `index` (exact and faiss).
"""
