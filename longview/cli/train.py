"""`longview train`: follow a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from longview.cli.options import import_libraries
from longview.cli.report import Answers
from longview.cli.terminal import is_terminal
from longview.errors import RequestError


@dataclass(frozen=True)
class DeviceOptions:
    """Many devices (docs/many-devices.md)"""

    nproc_per_node: Annotated[
        int | None, typer.Option(help="Processes to start on this machine, one a GPU; as torchrun.")
    ] = None
    nnodes: Annotated[int | None, typer.Option(help="Machines; each is given the same command.")] = None
    node_rank: Annotated[int | None, typer.Option(help="Number of this machine, from 0.")] = None
    master_addr: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where machine 0 is found.")] = None
    hostfile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="In their place: lines such as `node-1 slots=8`.")
    ] = None


def train(
    recipe: Annotated[
        str, typer.Argument(help="A YAML file, or a name that `longview recipes` lists.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the recipe's: stages.0.steps=10."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the run lives; default: runs/ and the recipe's name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in that folder.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the whole recipe as understood, and what it takes; then stop.")
    ] = False,
    time_steps: Annotated[
        bool, typer.Option("--time-steps", help="With --dry-run: take the time of a few real steps of each stage.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin even if it seems to take more memory than there is.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard's events, too, to tensorboard/ in that folder.")
    ] = False,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="Send the log to Weights & Biases, too, where wandb is installed.")
    ] = False,
    answers: Answers = 4,
    minutes: Annotated[
        float | None,
        typer.Option(help="End after so many, if the steps take longer: rates fall in time, the model is exported."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that paint scenes and make batches ahead; for stages with world.")
    ] = 0,
    *,
    devices: DeviceOptions,
) -> None:
    """Train a model as a recipe says; stop it at any time, and resume.

    Examples:
      longview train recipes/demo/owl3-tower.yaml
      longview train recipes/demo/owl3-tower.yaml --resume
      longview train recipes/demo/words.yaml seed=2 stages.0.steps=100 --output runs/short
      longview train recipes/demo/words.yaml --dry-run
      longview train lora model.start=AIDC-AI/Ovis2-2B stages.0.data.datasets.0.path='rows.jsonl#2000'
      longview train owl3/3-instruct --nproc-per-node 8 parallel=fsdp2
    """
    from longview.shipped import find_recipe
    from longview.train.recipe import load_recipe, to_tree

    if time_steps and not dry_run:
        raise RequestError("--time-steps is for --dry-run; add that, or leave it out")
    path = find_recipe(recipe)
    understood = load_recipe(path, overrides or ())  # a mistake in it is told before torch is imported
    import_libraries(is_terminal())
    from longview.train.distributed.launch import make_launch, start
    from longview.train.distributed.processes import is_first
    from longview.train.run import Interrupted
    from longview.train.run import train as follow

    if dry_run:
        import yaml

        from longview.train.plan.dry_run import dry_run as describe

        summary, *lines = describe(understood, force, time_steps)
        typer.echo(f"# {summary}")
        typer.echo(yaml.safe_dump(to_tree(understood), sort_keys=False, allow_unicode=True).rstrip())
        typer.echo("\n".join(f"# {line}" for line in lines))
        return
    launch = make_launch(**asdict(devices))
    flags = {"resume": resume, "force": force, "tensorboard": tensorboard, "wandb": wandb}
    folder = output or Path("runs") / f"{path.resolve().parent.name}-{path.stem}"
    if launch is not None:
        arguments = ["train", str(path), *(overrides or ()), f"--output={folder}", f"--answers={answers}"]
        arguments += [f"--{flag}" for flag, given in flags.items() if given]
        arguments += [] if minutes is None else [f"--minutes={minutes}"]
        arguments += [f"--workers={workers}"] if workers else []
        raise typer.Exit(start(launch, arguments))
    try:
        terminal = is_terminal()
        trained = follow(
            understood, folder, resume, terminal, force, tensorboard, answers, _say, wandb, minutes, workers
        )
        if is_first():
            typer.echo(trained)
            for line in closing_lines(trained, folder):
                _say(line)
    except Interrupted as stop:
        typer.echo(f"longview: {stop}", err=True)
        raise typer.Exit(130) from None


def _say(text: str) -> None:
    typer.echo(text, err=True)


def closing_lines(trained: Path, run: Path) -> Iterator[str]:
    """What a run has left where, and what to do with it."""
    size = sum(path.stat().st_size for path in trained.iterdir()) / (1 << 20)
    yield f"{'trained':<10}{trained}, {size:,.1f} MiB"
    yield f"{'report':<10}{run / 'report.html'}"
    if (run / "quarantine.jsonl").exists():
        yield f"{'broken':<10}samples that could not be shown: {run / 'quarantine.jsonl'}"
    folder = shlex.quote(str(trained))
    if (trained / "adapter_config.json").exists():
        yield f'{"next":<10}longview ask --adapter {folder} photo.jpg "What is it?"'
        yield f"{'':<10}longview merge {folder} my-model"
    elif (trained / "preprocessor_config.json").exists():
        yield f'{"next":<10}longview ask --model {folder} photo.jpg "What is it?"'
