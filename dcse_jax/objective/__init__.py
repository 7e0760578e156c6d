"""What a round trains on: the weighted sum of terms, and what the step offers to them.

Doors: `objective` (the sum), `corpus` (what a run knows of its whole text).
"""
