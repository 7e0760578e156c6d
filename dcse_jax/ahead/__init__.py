"""Training steps without arrays, compiled for devices that are not there.

Doors: `abstract_step` (shapes in place of arrays), `hlo` (what a compiled program
does).
"""
