"""Learned transfer between two stains: unpaired (CycleGAN), or paired where registered pairs exist. Needs torch.

Not imported by `stain` itself, which knows no torch: `from stain.transfer import train, load`.

    networks.py   generator and discriminator; no generator looks at statistics of a tile
    losses.py     least squares, cycle, identity, L1; the pool of earlier images
    training.py   seeded steps, checkpoints, exact resume
    model.py      a trained transfer: applied to tiles, kept as JSON and safetensors
    streaming.py  large images piece by piece, without seams
"""

from .model import TransferModel, load
from .streaming import pieces, stream, transfer_image
from .training import Crops, TrainSettings, train

__all__ = ["Crops", "TrainSettings", "TransferModel", "load", "pieces", "stream", "train", "transfer_image"]
