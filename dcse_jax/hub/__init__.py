"""Reads and writes the model folders of transformers and sentence-transformers.

Doors: `folder` (load and save a whole model), `tokenizer`, `model_card`, `wordpiece` (a
tokenizer from text).
"""
