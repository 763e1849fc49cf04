"""One peer's feature extraction of one slide, or its loader alone, in a process and an environment of its own.

    python _encode_peer.py WHO CONSUMER SLIDE WEIGHTS → one JSON line: CPU and wall seconds, tiles, the features' mean

The libraries are loaded and the network is built before the clock runs. CONSUMER:

* `fast` (the mean color of some pixels) or `resnet50` (WEIGHTS: a state of timm): all of the extraction. Opening the
  slide, tissue, tiles, network and the peer's own output count.
* `input` or `pixels`: the peer's own loader alone, in front of the mean color. The slide was opened, tissue and tiles
  were found before; what counts is reading and, for `input`, the peer's way from there to the network's input.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

TILE, MPP, BATCH = 224, 0.5, 32
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Run = Callable[[], np.ndarray]
Transform = Callable[[Any], torch.Tensor] | None


class MeanColor(torch.nn.Module):
    """The mean color of every 16th pixel."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S), or bytes (B, S, S, 3) → (B, 3)."""
        if batch.shape[-1] == 3:
            return batch[:, ::16, ::16].float().mean((1, 2))
        return batch[:, :, ::16, ::16].float().mean((2, 3))


def network(consumer: str, weights: str) -> torch.nn.Module:
    if consumer != "resnet50":
        return MeanColor().eval()
    import timm

    model = timm.create_model("resnet50", pretrained=False, num_classes=0)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def to_input() -> Callable[[Any], torch.Tensor]:
    from torchvision import transforms

    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, SD)])


def lazyslide(model: torch.nn.Module, slide: str, folder: str) -> Run:
    import lazyslide as zs
    from wsidata import open_wsi

    transform = to_input()

    def run() -> np.ndarray:
        wsi = open_wsi(slide, store=f"{folder}/slide.zarr")
        zs.pp.find_tissues(wsi, filter_artifacts=False, to_hsv=True)
        zs.pp.tile_tissues(wsi, TILE, mpp=MPP)
        found = zs.tl.feature_extraction(
            wsi, model=model, model_name="x", transform=transform, device="cpu", batch_size=BATCH, num_workers=0,
            pbar=False, return_features=True,
        )  # fmt: skip
        return np.asarray(found)  # not written: with this pandas anndata cannot; the peer is spared that

    return run


def lazyslide_loader(model: torch.nn.Module, slide: str, folder: str, transform: Transform) -> Run:
    """Return the loop of its `feature_extraction`: its dataset in a DataLoader."""
    import lazyslide as zs
    from wsidata import open_wsi

    wsi = open_wsi(slide, store=f"{folder}/slide.zarr")
    zs.pp.find_tissues(wsi, filter_artifacts=False, to_hsv=True)
    zs.pp.tile_tissues(wsi, TILE, mpp=MPP)
    return over(wsi.ds.tile_images(tile_key="tiles", transform=transform), model)


def over(dataset: Any, model: torch.nn.Module) -> Run:
    """Return a turn over a dataset in this very process."""
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=0)
    return lambda: np.concatenate([model(batch["image"]).numpy() for batch in loader])


def tiatoolbox(model: torch.nn.Module, slide: str, folder: str) -> Run:
    from tiatoolbox.models.engine.deep_feature_extractor import DeepFeatureExtractor
    from tiatoolbox.models.engine.io_config import IOPatchPredictorConfig
    from tiatoolbox.models.models_abc import ModelABC

    class Wrapped(ModelABC):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model
            self._preproc = to_input()

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.inner(batch)

        @staticmethod
        def infer_batch(model: torch.nn.Module, batch: torch.Tensor, *, device: str = "cpu") -> list[np.ndarray]:
            with torch.inference_mode():
                x = batch if batch.shape[1] == 3 else batch.permute(0, 3, 1, 2)
                return [model(x.to(device).float()).numpy()]

    config = IOPatchPredictorConfig(
        input_resolutions=[{"units": "mpp", "resolution": MPP}], patch_input_shape=[TILE, TILE],
        stride_shape=[TILE, TILE], output_resolutions=[],
    )  # fmt: skip

    def run() -> np.ndarray:
        import zarr

        engine = DeepFeatureExtractor(model=Wrapped(), batch_size=BATCH, num_workers=0, device="cpu", verbose=False)
        out = engine.run(
            images=[Path(slide)], patch_mode=False, ioconfig=config, auto_get_mask=True, output_type="zarr",
            save_dir=Path(folder) / "out", overwrite=True,
        )  # fmt: skip
        store = next(iter(out.values()))
        return np.asarray(zarr.open(str(store), mode="r")["features"][:])

    return run


def tiatoolbox_loader(model: torch.nn.Module, slide: str, _: str, transform: Transform) -> Run:
    """Return a turn over the dataset and DataLoader that its engine makes (`get_dataloader`)."""
    from tiatoolbox.models.dataset.dataset_abc import WSIPatchDataset

    side = [TILE, TILE]
    dataset = WSIPatchDataset(
        Path(slide), patch_input_shape=side, patch_output_shape=side, stride_shape=side, resolution=MPP, units="mpp",
        auto_get_mask=True, preproc_func=transform,
    )  # fmt: skip
    return over(dataset, model)


def slide2vec_loader(model: torch.nn.Module, slide: str, folder: str, transform: Transform) -> Run:
    """Return the step of its pipeline that goes from coordinates to features, in this very process."""
    from slide2vec.runtime import embedding_pipeline as step

    whole, asked = step.compute_tile_embeddings_for_slide, []

    def only_asked(*args: Any, **settings: Any) -> torch.Tensor:
        asked.append((args, settings))
        return torch.zeros(len(args[3].x), 3)  # args[3]: the tiles that were found

    step.compute_tile_embeddings_for_slide = only_asked
    step.resolve_on_the_fly_num_workers = lambda *_, **__: (0, "")  # a process of its own would only cost
    if transform is None:
        step.build_batch_preprocessor = lambda *_: lambda batch: batch
    slide2vec(model, slide, folder)()
    ((args, settings),) = asked
    return lambda: whole(*args, **settings).numpy()


def slide2vec(model: torch.nn.Module, slide: str, folder: str) -> Run:
    import slide2vec as s2
    from hs2p.configs.models import TilingConfig

    dim = model(torch.zeros(1, 3, TILE, TILE)).shape[1]

    @s2.register_encoder(
        "bench", encode_dim=int(dim), input_size=TILE, supports_variable_input_size=False, supported_spacing_um=MPP,
        precision="fp32",
    )  # fmt: skip
    class Bench(s2.TorchTileEncoder):
        def __init__(self, *, output_variant: str | None = None, **_: Any) -> None:
            super().__init__(
                model, encode_dim=int(dim), input_size=TILE, mean=MEAN, std=SD, output_variant=output_variant
            )

    def run() -> np.ndarray:
        tiling = TilingConfig(requested_tile_size_px=TILE, requested_spacing_um=MPP, tolerance=0.05, overlap=0.0)
        pipeline = s2.Pipeline(
            s2.Model.from_preset("bench", device="cpu", allow_non_recommended_settings=True),
            s2.PreprocessingConfig(tiling=tiling),
            execution=s2.ExecutionOptions(
                output_dir=Path(folder), batch_size=BATCH, num_workers_per_gpu=0, num_preprocessing_workers=1,
                precision="fp32", save_tile_embeddings=True,
            ),
        )  # fmt: skip
        pipeline.run(slides=[slide])
        (path,) = Path(folder).rglob("tile_embeddings/*.pt")
        return torch.load(path, weights_only=True).numpy()

    return run


PEERS = {
    "lazyslide": (lazyslide, lazyslide_loader, ("lazyslide", "wsidata", "torch", "timm")),
    "tiatoolbox": (tiatoolbox, tiatoolbox_loader, ("tiatoolbox", "torch", "timm")),
    "slide2vec": (slide2vec, slide2vec_loader, ("slide2vec", "hs2p", "torch", "timm")),
}


def cpu() -> float:
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def main() -> None:
    who, consumer, slide, weights = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    torch.set_num_threads(1)
    extraction, loader, packages = PEERS[who]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = network(consumer, weights)
        if consumer in ("input", "pixels"):
            run = loader(model, slide, folder, to_input() if consumer == "input" else None)
        else:
            run = extraction(model, slide, folder)
        began, wall = cpu(), time.perf_counter()
        features = run()
        facts = {"cpu": cpu() - began, "wall": time.perf_counter() - wall, "tiles": len(features)}
    told = {"mean": float(np.mean(features)), "versions": {name: version(name) for name in packages}}
    print(json.dumps(facts | told), file=answers, flush=True)


if __name__ == "__main__":
    main()
