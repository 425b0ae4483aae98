"""Bringing the rows of a v1 database over; v1's tables are only read.

`tables` finds them, `documents` makes documents and vectors of their rows, `people`
accounts, `weights` search weights. What runs them all is ``ops/import_v1.py``.
"""
