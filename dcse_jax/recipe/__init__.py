"""Rounds of training, each on the models of earlier ones, from a config to an export.

Doors: `recipe` (all rounds of a workdir), `reading` (what is read and checked first, into
`inputs`), `preparing` and `round` (one of them), `origin` (what rounds come from),
`finished` (the models that a workdir holds).
"""
