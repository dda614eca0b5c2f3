"""Distilling teachers into a student on its own text, on top of TRL.

Begin at `trainer` (TRL's trainers with several teachers, which `teaching` reads and `teachers` checks); `loss`,
`mixture` and `divergences` hold the equations. `teacher_choice` says which teacher a row learns from, `choice_rows`
what becomes of that.
"""
