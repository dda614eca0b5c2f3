"""Rewards: callables for TRL's trainers, and `.score` for everything else.

Begin at `base` (the trainer's contract) and `latent` (readouts of one forward); `build` turns names into rewards.
Others: `likert`, `probe`, `layer_weights`; around other rewards: `guarded`, `composite`, `calibrated`, `reasoned`.
`scorer` scores files row by row, `response_scores` the answers of several models.
"""
