"""Rounds of training, each on the models of earlier ones, from a config to an export.

Doors: `recipe` (all rounds of a workdir), `round` (one of them), `inputs` (what is read
and checked first), `origin` (what rounds come from), `finished` (the models that a
workdir holds).
"""
