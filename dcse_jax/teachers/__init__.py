"""Teachers: from models to the embeddings that a step distils from.

Doors: `embeddings` (those that others computed), `stacks` (many frozen encoders in one forward pass), `cache` (their embeddings of
a whole text), `teaching` (a round's teachers, run at each step or read from the cache).
"""
