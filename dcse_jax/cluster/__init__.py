"""Folders of Parquet parts: texts of any size embedded by one machine or by several.

Doors: `command` (flags and the one call), `embedders` (the models), `manifest` (what a
folder of parts holds), `chunks` (work that needs no model). Ray is imported by `engine`
alone, and only when it is asked for.
"""
