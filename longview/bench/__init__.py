"""How fast, and how far from what the machine can do: numbers that a reader can repeat.

It measures the other rooms, so it stands above them, below the command line alone.

subject.py       a model of given dimensions with random weights (or a real one), behind the real engine
alternatives.py  the same language model with the pictures in its sequence; plain transformers; the authors' way
limits.py        the matrix rate and the bandwidth of this machine, measured
measures.py      what is measured: first token, decoding, batches, second questions, videos, memory
training.py      what training costs: full, LoRA, QLoRA; plain, padded, packed
report.py        a measurement as a table, as JSON, as a plot, as a page
"""
