"""Training: a recipe in, a checkpoint folder out; may be stopped at any step and resumed.

recipe.py      one dataclass tree, read from YAML
data.py        scenes of the synthetic world → samples
tokenizer.py   a small tokenizer for models made from nothing
folder.py      what lies in the folder of a run, and who holds it
run.py         the loop
"""
