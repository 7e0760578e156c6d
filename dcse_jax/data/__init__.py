"""Data: readers of text, the token cache, and the order of batches.

Doors: `text` (rows of any source), `lines` (a file line by line), `tokens` (the cache),
`batches` (what training iterates over), `synthetic` (the made-up language).
"""
