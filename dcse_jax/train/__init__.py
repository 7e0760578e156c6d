"""Trains a model from its start to its best parameters.

Doors: `loop` (steps, logs, evaluations, checkpoints), `runs` (what it is given), `step`
(one step, a pure function), `batches` (what the loop asks for), `checkpoint`,
`optimizer`, `flops`.
"""
