"""The forward of a frozen model: every shared token once, no layer deeper than asked for, no score changed by it.

Begin at `blocks` (the plain forward, the reference) and `tree` (many rows that share beginnings: what is used).
`packed`, `attention` and `prefix_tree` are what `tree` is made of; `invariant` keeps sums independent of the batch;
`loading` and `pretrained` bring models and tokenizers.
"""
