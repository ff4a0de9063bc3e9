"""The files that people have on disk → items. One file a format; each says what it reads in its first lines.

tables.py     rows of TSV, JSON, JSONL, Parquet, Hugging Face's folders and names; pictures inside stay on the disk
files.py      which of a task's forms a folder holds, and what is missing
columns.py    what rows must hold, and what is said where they do not
truths.py     the letter of a truth that is given as a number, a letter or words
tsv.py        VLMEvalKit's TSV
…             one a benchmark, or one a form that several share
"""
