"""Small heads on a judge's hidden states: train, choose, save, publish.

Begin at `probe` (the saved thing) and `train` (from examples to a probe with its figures): `examples`, `collect` and
`features` feed it, `fit`, `networks` and `linear` learn, `cross_validation` chooses. `layer_weights` tunes the
cross-layer score.
"""
