"""Training: a recipe in, a checkpoint folder out; may be stopped at any step and resumed.

recipe.py      one dataclass tree, read from YAML; settings.py builds and checks such trees, moved.py knows old keys
run.py         a run from its recipe to what it leaves behind
loop.py        the steps of its stages
build.py       the model that a recipe trains; init_from.py parts of it from others' weights
tokenizer.py   a small tokenizer for models made from nothing
optimizers.py  which parameters learn, how fast
data/          a user's rows → samples → batches
objectives/    samples → losses
distributed/   several processes
plan/          what a run will take
preferences/   a model's own answers → pairs to learn from
saved/         the folder of a run: checkpoints, the exported model
report/        log, curves, answers, and the page of a run
"""
