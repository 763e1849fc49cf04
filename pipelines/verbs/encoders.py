"""Verbs of the registry of encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.console import guarded, show

from .options import CommercialOnly, Json, Offline, Quiet, Verbose, Weights

Name = Annotated[
    str, typer.Argument(help="An encoder: `slidemil encoders list` names them; pull and verify: or timm's.")
]


@guarded
def list_(
    commercial_only: CommercialOnly = False,
    offline: Offline = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Every encoder that is known by name: width, size, licence, and whether access has to be asked for.

    Example: slidemil encoders list --commercial-only
    """
    from pipelines import encoder_verbs

    result = encoder_verbs.list_encoders(commercial_only=commercial_only)
    show(result, json_)
    return result.exit_code


@guarded
def show_(
    name: Name, offline: Offline = False, json_: Json = False, quiet: Quiet = False, verbose: Verbose = False
) -> int:
    """All about one: network, pooling, input, µm/px, licence, and where other tools mean something else by the name.

    Example: slidemil encoders show uni_v2
    """
    from pipelines import encoder_verbs

    result = encoder_verbs.show(name)
    show(result, json_)
    return result.exit_code


@guarded
def pull(
    name: Name,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to copy the weights to, to carry away.")
    ] = None,
    offline: Offline = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Fetch weights into the hub cache, and say their hash.

    Example: slidemil encoders pull hoptimus0 -o weights/
    """
    from pipelines import encoder_verbs

    result = encoder_verbs.pull(name, out, offline=offline)
    show(result, json_)
    return result.exit_code


@guarded
def verify(
    name: Name,
    weights: Weights = None,
    expect: Annotated[Path | None, typer.Option(help="Fingerprint that the features have to match.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file to write the fingerprint to.")] = None,
    offline: Offline = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Load weights strictly and see that features are sound: finite, alike in any batch, as the fingerprint says.

    Example: slidemil encoders verify uni_v1 --weights weights/pytorch_model.bin -o uni.json
    """
    from pipelines import encoder_verbs

    result = encoder_verbs.verify(name, weights, expect=expect, out=out, offline=offline)
    show(result, json_)
    return result.exit_code
