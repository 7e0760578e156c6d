"""Word vectors by counting: which words stand near which, and nothing else.

Doors: `words` (which words there are), `vectors` (what they stand near), `static` (a
model of their means).
"""
