"""Probe, verifier or rating head as a checkpoint that other software serves.

Begin at `heads` (a sequence-classification model in one folder); `template` gives the judge prompt to its chat template
and `checkpoints` writes the weights.
"""
