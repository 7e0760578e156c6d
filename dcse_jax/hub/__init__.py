"""Model folders as transformers and sentence-transformers write them, in and out.

Doors: `folder` (load and save a whole model), `model_card`, `wordpiece` (a tokenizer from
text).
"""
