#!/bin/sh
# The embedded models, from their seeds to the tables of docs/training.md:
#
#     sh recipes/demo/make.sh
#
# Some eight hours on one CPU core. Killed and called again, it goes on where it was. The towers that choose frames have a
# recipe of their own: siglip.yaml.
set -eu
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

train() { # RECIPE RUN
    [ -e "runs/$2/model/model.safetensors" ] && return
    resume=
    [ -e "runs/$2/recipe.json" ] && resume=--resume
    longview train "recipes/demo/$1.yaml" --output "runs/$2" $resume
}

ship() { # FAMILY FOLDER
    python -m longview.eval.card write "$2"
    mkdir -p "longview/demo/$1"
    for file in config.json model.safetensors preprocessor_config.json tokenizer.json tokenizer_config.json \
        evaluation.json README.md; do
        install -m 644 "$2/$file" "longview/demo/$1/$file"
    done
}

# Pieces: a tower for each family, and a language model for all of them.
for family in owl3 ovis2 mgm; do train $family-tower demo-$family-tower; done
train words demo-words

# Curricula.
for family in owl3 ovis2 mgm; do train curricula/$family curricula-$family; done
if [ ! -e runs/preferences-ovis2/pairs.jsonl ]; then
    python -m longview.curriculum.make_preferences runs/curricula-ovis2/model runs/preferences-ovis2 1000
fi
train curricula/ovis2-prefer curricula-ovis2-prefer

# What each stage moved.
measure() { # FAMILY RUN … : PIECE …
    name=$1
    shift
    python -m longview.eval.curriculum "docs/training/$name.json" 20 "$@"
}
measure words runs/demo-words
measure owl3 runs/curricula-owl3 : runs/demo-owl3-tower runs/demo-words
measure ovis2 runs/curricula-ovis2 runs/curricula-ovis2-prefer : runs/demo-ovis2-tower runs/demo-words
measure mgm runs/curricula-mgm : runs/demo-mgm-tower runs/demo-words

ship owl3 runs/curricula-owl3/after/3-instruct-on
ship ovis2 runs/curricula-ovis2-prefer/model
ship mgm runs/curricula-mgm/after/2-instruct

# On, from the embedded one.
train curricula/owl3-knowledge curricula-owl3-knowledge
python -m longview.eval.card measure runs/curricula-owl3-knowledge/model runs/curricula-owl3-knowledge
ship owl3-knowledge runs/curricula-owl3-knowledge/model
for recipe in owl3-many owl3-many-on owl3-many-longest owl3-many-further; do
    train curricula/$recipe curricula-$recipe
done
many=runs/curricula-owl3-many
python -m longview.eval.card measure $many-further/model $many $many-on $many-longest $many-further
ship owl3-many $many-further/model
for recipe in owl3-crops ovis2-print; do train curricula/$recipe curricula-$recipe; done
train mgm-print-tower demo-mgm-print-tower
train curricula/mgm-print curricula-mgm-print
for name in owl3-crops ovis2-print; do
    python -m longview.eval.card measure runs/curricula-$name/model runs/curricula-$name
    ship $name runs/curricula-$name/model
done
python -m longview.eval.card measure runs/curricula-mgm-print/model runs/demo-mgm-print-tower runs/curricula-mgm-print
ship mgm-print runs/curricula-mgm-print/model
python docs/make.py
