"""Steadier videos: what one frame showed is carried on to the next, where the picture agrees.

Two things flicker when frames are segmented one by one, and both are carried: CRM's votes (a class
near the limit of K is kept in one frame and dropped in the next) and the probability maps. The maps
follow the optical flow, and count only as far as the last picture, moved along it, explains the
present one: they fade where something appears from behind, and nothing survives a cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from errseg.errors import ConfigError
from errseg.model.err_seg import ClassMaps
from errseg.records import ImageArray

MOST_CARRIED = 0.94
"""Share of the past in a frame at strength 1, where the picture agrees fully."""

_GREY_SIDE_PX = 192
"""Frames are compared at this size: flow to a fraction of a map's cell, in a few milliseconds."""

_TRUSTED_DIFFERENCE = 14.0
"""Grey levels (0..255) at which trust has fallen to 1/e; above a camera's noise, once blurred."""

_CUT_TRUST = 0.35
"""Mean trust below which nothing is carried: another scene."""

_FORGOTTEN = 0.02
"""A class that the model dropped is carried until its map is below this everywhere."""


@dataclass(frozen=True)
class Motion:
    """How the present frame came from the last one.

    Attributes:
        flow: (h, w, 2) float32, from a pixel of the present frame to its place in the last one, in
            pixels of the reduced frame, (x, y).
        trust: (h, w) float32, 0..1, how well the last frame explains each pixel.
    """

    flow: NDArray[np.float32]
    trust: NDArray[np.float32]

    @property
    def mean_trust(self) -> float:
        return float(self.trust.mean())


class Steadier:
    """What is carried from frame to frame of one video."""

    def __init__(self, strength: float) -> None:
        """
        Args:
            strength: 0 < strength <= 1; how much is carried. 0.7 is a good value.

        Raises:
            ConfigError: it is outside.
        """
        if not 0 < strength <= 1:
            raise ConfigError(f"steadiness is {strength}; it must be more than 0, at most 1.")
        self.strength = strength
        # equal steps of strength shorten by equal factors what is new in a frame
        self._carried = 1 - (1 - MOST_CARRIED) ** strength
        self._grey: NDArray[np.uint8] | None = None
        self._votes: Tensor | None = None
        self._maps: ClassMaps | None = None

    def observe(self, image: ImageArray) -> Motion | None:
        """Look at the next frame, (H, W, 3) uint8 RGB; before `carry_votes` and `smooth` for it.

        Returns:
            None where nothing is to be carried: the first frame, or another scene.
        """
        small = cv2.resize(image, (_GREY_SIDE_PX, _GREY_SIDE_PX), interpolation=cv2.INTER_AREA)
        grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
        last, self._grey = self._grey, grey
        if last is None:
            return None
        motion = _motion(grey, last)
        return motion if motion.mean_trust >= _CUT_TRUST else None

    def carry_votes(self, votes: Tensor, motion: Motion | None) -> Tensor:
        """CRM's votes (T,) of the next frame, those of earlier frames mixed in; float64."""
        mixed = votes.to(torch.float64)
        if motion is not None and self._votes is not None:
            share = self._carried * motion.mean_trust
            mixed = torch.lerp(mixed, self._votes.to(mixed.device), share)
        self._votes = mixed
        return mixed

    def smooth(self, maps: ClassMaps, motion: Motion | None) -> ClassMaps:
        """The next frame's maps, those of earlier frames mixed in."""
        if motion is not None and self._maps is not None:
            maps = _mixed(maps, _moved(self._maps, motion), self._share(maps, motion))
        self._maps = maps
        return maps

    def _share(self, maps: ClassMaps, motion: Motion) -> Tensor:
        """(h, w): how much of the past each cell takes."""
        height, width = maps.probabilities.shape[1:]
        trust = cv2.resize(motion.trust, (width, height), interpolation=cv2.INTER_AREA)
        share = torch.from_numpy(trust * np.float32(self._carried))
        return share.to(maps.probabilities.device)

    def state(self) -> dict[str, Tensor]:
        """Everything that is carried; `restore` goes on exactly there."""
        found: dict[str, Tensor] = {}
        if self._grey is not None:
            found["grey"] = torch.from_numpy(self._grey.copy())
        if self._votes is not None:
            found["votes"] = self._votes.cpu().clone()
        if self._maps is not None:
            found["probabilities"] = self._maps.probabilities.cpu().contiguous().clone()
            found["classes"] = self._maps.classes.cpu().contiguous().clone()
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._grey = state["grey"].numpy() if "grey" in state else None
        self._votes = state.get("votes")
        self._maps = (
            ClassMaps(state["probabilities"], state["classes"]) if "classes" in state else None
        )

    def to_bytes(self) -> bytes:
        """`state` as a safetensors file."""
        from safetensors.torch import save

        return save(self.state())

    def from_bytes(self, data: bytes) -> None:
        """Take over what `to_bytes` gave."""
        from safetensors.torch import load

        self.restore(load(data))


def _motion(grey: NDArray[np.uint8], last: NDArray[np.uint8]) -> Motion:
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow = np.asarray(search.calc(grey, last, np.zeros((*grey.shape, 2), np.float32)), np.float32)
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]].astype(np.float32)
    from_x, from_y = x + flow[..., 0], y + flow[..., 1]
    moved = cv2.remap(last, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = cv2.blur(grey.astype(np.float32) - moved, (5, 5))
    spread = cv2.blur(np.abs(grey.astype(np.float32) - moved), (5, 5))
    # a change of brightness is one sign over a whole blot, noise is both: the first counts fully
    error = np.abs(difference) + 0.25 * spread
    trust = np.exp(-np.square(error / _TRUSTED_DIFFERENCE))
    height, width = grey.shape
    inside = (from_x >= 0) & (from_x <= width - 1) & (from_y >= 0) & (from_y <= height - 1)
    return Motion(flow, np.where(inside, trust, 0).astype(np.float32))


def _moved(maps: ClassMaps, motion: Motion) -> ClassMaps:
    """The last frame's maps, brought to where things are now."""
    probabilities = maps.probabilities
    height, width = probabilities.shape[1:]
    flow = cv2.resize(motion.flow, (width, height), interpolation=cv2.INTER_AREA)
    # flow in shares of the picture, doubled: grid_sample's picture is 2 wide
    shift = torch.from_numpy(flow / np.float32(_GREY_SIDE_PX) * 2).to(probabilities.device)
    y = (torch.arange(height, device=shift.device) * 2 + 1) / height - 1
    x = (torch.arange(width, device=shift.device) * 2 + 1) / width - 1
    grid = torch.stack(torch.broadcast_tensors(x[None], y[:, None]), dim=-1) + shift
    moved = F.grid_sample(
        probabilities[None], grid[None], padding_mode="border", align_corners=False
    )
    return ClassMaps(moved[0], maps.classes)


def _mixed(now: ClassMaps, past: ClassMaps, share: Tensor) -> ClassMaps:
    """Both by class; a class that is new begins with what it is now, one that is gone fades."""
    device = now.classes.device
    past = ClassMaps(past.probabilities.to(device), past.classes.to(device))
    fading = ~torch.isin(past.classes, now.classes)
    fading &= (past.probabilities * share).flatten(1).amax(dim=1) >= _FORGOTTEN
    classes = torch.cat([now.classes, past.classes[fading]])
    present = torch.zeros(len(classes), *share.shape, device=device)
    present[: len(now.classes)] = now.probabilities
    before = present.clone()
    known = torch.isin(past.classes, classes)
    order = classes.sort()
    place = order.indices[torch.searchsorted(order.values, past.classes[known])]
    before[place] = past.probabilities[known]
    mixed = torch.lerp(present, before, share)
    return ClassMaps(mixed[order.indices], order.values)
