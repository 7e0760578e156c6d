"""Evaluation: scores of models, and the tables and figures that show them.

Doors: `registry` (the evaluators `sts`, `transfer`, `masked_words`; one file and one
line each), `offline`, `mteb_encoder`, `tables`, `figures`, `diagnostics`.
"""
