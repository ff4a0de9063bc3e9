#!/bin/sh
# The embedded models, from their seeds to the tables of docs/training.md:
#
#     sh recipes/demo/make.sh
#
# Some ten hours on one CPU core. Killed and called again, it goes on where it was. The towers that choose frames have a
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

# On, from the embedded ones.
train_on() { # NAME RUN …: the recipes of a model, one after another, and the model of the last
    name=$1
    shift
    for run in "$@"; do
        case $run in
            demo-*) train "${run#demo-}" "$run" ;;
            *) train "curricula/${run#curricula-}" "$run" ;;
        esac
    done
    last=runs/$run/model
    python -m longview.eval.card measure "$last" $(printf 'runs/%s ' "$@")
    ship "$name" "$last"
}
train_on owl3-knowledge curricula-owl3-knowledge
train_on owl3-many curricula-owl3-many curricula-owl3-many-on curricula-owl3-many-longest curricula-owl3-many-further
train_on owl3-print demo-owl3-print-tower demo-owl3-print-tower-on curricula-owl3-crops curricula-owl3-print
train_on ovis2-print curricula-ovis2-print
train_on mgm-print demo-mgm-print-tower curricula-mgm-print
python -m longview.eval.curves docs/results
python docs/make.py
