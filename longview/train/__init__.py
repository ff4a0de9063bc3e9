"""Training: a recipe in, a checkpoint folder out; may be stopped at any step and resumed.

recipe.py      one dataclass tree, read from YAML
rows.py        a row of a user's data, in any spelling → messages and media
datasets.py    files of such rows → a stream of samples; the report of broken ones
supervised.py  samples → gradients: next words, or preferences
data.py        scenes of the synthetic world → samples
objectives.py  samples of the world → losses; pairs.py those of two towers
tokenizer.py   a small tokenizer for models made from nothing
opening.py     the model that a recipe trains
optimizers.py  which parameters learn, how fast
folder.py      what lies in the folder of a run, and who holds it
run.py         the loop
"""
