"""The objective of a round: a weighted sum of terms, and the inputs offered to them.

Doors: `objective` (the sum), `corpus` (clusters and neighbours within the whole text).
"""
