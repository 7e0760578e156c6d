"""The base of every command: errors, files, locks, processes, devices, signals.

Doors: `command_line` (how commands start and end), `files`, `digests`, `locks`,
`workdir`, `processes`, `mesh`, `signals`.
"""
