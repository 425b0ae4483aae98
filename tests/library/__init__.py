"""An app of some project, whose rows are kept in step as documents.

Only processes run with ``tests.library.settings`` have it installed; tests in
pytest's own process use its models, and make and drop its tables.
"""
