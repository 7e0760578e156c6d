"""Reads and writes the model folders of transformers and sentence-transformers.

Doors: `folder` (load and save a whole model), `model_card`, `wordpiece` (a tokenizer
from text).
"""
