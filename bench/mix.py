"""Mix the weights of two runs of one model, calibrate the mixture and save it (model soups).

    python bench/mix.py FIRST.safetensors SECOND.safetensors SHARE OUT.safetensors --data DIR

SHARE, 0 to 1, is the second's. The mixture is calibrated on 50 validation pictures of each of the
sets that errseg-mini is measured on. So the shipped weights were made of the last run's and the
third's (see the model card); what a mixture is worth, `bench/mini.py` measures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from errseg.process import prepare_process

prepare_process()

import torch

from errseg.datasets import open_folder
from errseg.training.calibration import calibrate
from errseg.weights import load_model, save_model

SETS = ("facade", "idd", "clothing")
PICTURES = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="holds val/")
    options = parser.parse_args()
    model, other = load_model(options.first), load_model(options.second)
    with torch.no_grad():
        pairs = zip(model.parameters(), other.parameters(), strict=True)
        for value, theirs in pairs:
            value.lerp_(theirs, options.share)
    folders = [open_folder(options.data / "val" / name) for name in SETS]
    calibrate(model, folders, PICTURES)
    save_model(model, options.out, compact=True)
    config = model.config
    print(f"scale {config.logit_scale:.3f}, shift {config.logit_shift:.3f}, ", end="")
    print(f"competition {config.competition:.2f}")


if __name__ == "__main__":
    main()
