"""What a model is worth: scores, and the tables and figures that show them.

Doors: `sts`, `transfer`, `mteb_encoder`, `tables`, `figures`, `diagnostics`.
"""
