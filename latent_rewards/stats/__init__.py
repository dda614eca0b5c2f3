"""Statistics without a model: arrays in, numbers with intervals out.

Begin at `bootstrap` (estimates with intervals over groups); `pairs`, `ranking`, `correlation` and `distributions` hold
the measures.
"""
