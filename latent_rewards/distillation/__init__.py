"""Distilling teachers into a student on its own text, on top of TRL.

Begin at `trainer` (the trainer, around any divergence); `divergences` and `loss` hold the equations, `teachers` loads
several teachers, and `teacher_choice` says which of them teaches a row.
"""
