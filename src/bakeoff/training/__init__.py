"""One run, from a spec to its record.

The way through: `preparation` (the spec resolved, its data encoded), `fine_tuning` (phases by the recipe,
with attention transfer, `transfer`, between them), and `train`, which calls both, evaluates and writes the
record. `trainer`, `batching`, `callbacks` and `interrupts` are what the phases share.
"""
