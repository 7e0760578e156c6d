"""Word vectors by counting: which words stand near which, and how they are spelled.

Doors: `words` (which words there are), `vectors` (what they stand near), `spelling`, and
`static` (a model of their means).
"""
