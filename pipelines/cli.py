"""The command `slidemil`: its verbs, put together. What they do lies in `pipelines.verbs`.

Nothing heavy is imported before a verb needs it: `slidemil --help` answers at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .console import say
from .verbs import encoders, exchange, job, learn, look, machine, slides, stain, view

app = typer.Typer(
    name="slidemil",
    help="From a folder of whole-slide images to slide-level predictions and heatmaps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verb in (
    machine.demo,
    machine.doctor,
    slides.info,
    slides.scan,
    slides.plan,
    job.extract,
    job.run,
    learn.train,
    learn.predict,
    learn.evaluate,
    look.heatmap,
    look.report,
    view.serve,
    look.status,
    exchange.convert,
    exchange.check,
    look.why,
    look.verify,
):
    app.command()(verb)

stain_app = typer.Typer(
    help="Normalizers, learned transfer, and whether they do harm, e.g. slidemil stain fit slides/ -o reference.json",
    no_args_is_help=True,
)
for stain_verb in (stain.fit, stain.apply, stain.train, stain.validate, stain.audit):
    stain_app.command()(stain_verb)
app.add_typer(stain_app, name="stain")

encoders_app = typer.Typer(
    help="Which encoders there are, and their weights, e.g. slidemil encoders show uni_v2",
    no_args_is_help=True,
)
for name, encoder_verb in (
    ("list", encoders.list_),
    ("show", encoders.show_),
    ("pull", encoders.pull),
    ("verify", encoders.verify),
):
    encoders_app.command(name)(encoder_verb)
app.add_typer(encoders_app, name="encoders")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from . import __version__

        say(f"slidemil {__version__}")
        raise typer.Exit


if __name__ == "__main__":
    app()
