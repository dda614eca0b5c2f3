"""What a frozen judge is asked and what it answers, up to the numbers that rewards are made of.

Begin at `reading` (`Judge`, `Request`, `Reading`: all that a reward sees) and `hf` (`HFJudge`). `prompts` and `labels`
say what is asked, `encoding` gives token ids, `assemble` turns states into a reading, `fingerprint` tells judges apart,
`layouts` and `transcripts` know how others store dialogues.
"""
