"""`longview bench`: speed and memory, beside alternatives and the limits of the machine, measured in the same run.

subject.py       a model of given dimensions with random weights (or a real one), in the real engine
alternatives.py  the same language model with interleaved pictures; plain transformers; the authors' method
limits.py        matrix rate and memory bandwidth of this machine, measured
measures.py      first token, decoding, batches, second questions, videos, memory
growth.py        cost as pictures and films grow; growth_page.py its sentences, figure and page
films.py         films of numbered frames, and reading them by their length
training.py      training: full, LoRA, QLoRA; plain, padded, packed
index.py         the store of an index: size, adding, searching, recall
report.py        a result as a table, JSON, plot or page
"""
