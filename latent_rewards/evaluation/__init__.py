"""Measuring judges: benchmarks, metrics with intervals, a resumable run, and a report.

Begin at `run` (one configuration to results): `readings` reads every text once, `scorers` makes columns of scores of
it, `metrics` and `analysis` compare them with the gold, `report` shows them; `results` has the types of what comes out.
`benchmarks` holds one file a set.
"""
