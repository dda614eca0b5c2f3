"""Which model should answer: scores predicted from the prompt alone.

Begin at `router` (`Router`: fit, predict, choose, save), over `embeddings` and `predictors`; `policies` measures what
routing is worth.
"""
