from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from errseg.config import PRESETS, Keep
from errseg.errors import ConfigError
from errseg.inference import predict
from errseg.model.err_seg import ClassMaps, ErrSeg
from errseg.steady import MOST_CARRIED, Steadier


def scene(seed: int, size: tuple[int, int] = (240, 320)) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def maps(values: Sequence[float], classes: Sequence[int], side: int = 24) -> ClassMaps:
    """Even maps."""
    even = torch.tensor(values).view(-1, 1, 1).expand(-1, side, side).contiguous()
    return ClassMaps(even, torch.tensor(classes))


def next_maps(steadier: Steadier, image: NDArray[np.uint8], found: ClassMaps) -> ClassMaps:
    return steadier.smooth(found, steadier.observe(image))


def test_noise_on_a_still_picture_is_smoothed() -> None:
    still, steadier = scene(0), Steadier(1.0)
    draw = torch.Generator().manual_seed(0)
    seen, smoothed = [], []
    for _ in range(40):
        noisy = ClassMaps(0.5 + 0.2 * torch.randn(2, 24, 24, generator=draw), torch.tensor([3, 7]))
        seen.append(noisy.probabilities.argmax(dim=0))
        smoothed.append(next_maps(steadier, still, noisy).probabilities.argmax(dim=0))

    def changes(labels: list[torch.Tensor]) -> float:
        return float(np.mean([(a != b).float().mean() for a, b in pairwise(labels[10:])]))

    assert changes(smoothed) < 0.3 * changes(seen)


def test_a_still_picture_takes_its_share_of_the_past() -> None:
    still, steadier = scene(0), Steadier(0.5)
    next_maps(steadier, still, maps([1.0], [0]))
    found = next_maps(steadier, still, maps([0.0], [0]))
    # moved over the border of the picture, the past does not count
    inner = found.probabilities[0, 4:-4, 4:-4]
    share = 1 - (1 - MOST_CARRIED) ** 0.5
    assert 0.97 * share < inner.min()
    assert inner.max() <= share + 1e-6


def test_a_cut_forgets_everything() -> None:
    steadier = Steadier(1.0)
    next_maps(steadier, scene(0), maps([1.0, 0.0], [0, 1]))
    steadier.carry_votes(torch.tensor([100, 0]), None)
    motion = steadier.observe(scene(1))
    assert motion is None
    found = steadier.smooth(maps([0.0, 1.0], [0, 1]), motion)
    assert torch.equal(found.probabilities, maps([0.0, 1.0], [0, 1]).probabilities)
    assert steadier.carry_votes(torch.tensor([0, 5]), motion).tolist() == [0, 5]


def test_what_moves_is_followed() -> None:
    """A bright class-1 block on a pan keeps its place in the picture, not on the screen."""
    steadier = Steadier(1.0)
    wide = scene(2, (240, 480))
    last = None
    for step in range(8):
        at = 6 * step
        found = torch.zeros(2, 24, 32)
        left = 16 - at * 32 // 320
        found[1, 8:16, left : left + 8] = 1.0
        found[0] = 1 - found[1]
        window = np.ascontiguousarray(wide[:, at : at + 320])
        last = next_maps(steadier, window, ClassMaps(found, torch.tensor([0, 1])))
    assert last is not None
    labels = last.probabilities.argmax(dim=0)
    truth = found.argmax(dim=0)
    assert (labels == truth).float().mean() > 0.97


def test_classes_are_matched_by_id() -> None:
    still, steadier = scene(0), Steadier(1.0)
    next_maps(steadier, still, maps([0.9, 0.5], [2, 5]))
    found = next_maps(steadier, still, maps([0.4, 0.1], [1, 5]))
    assert found.classes.tolist() == [1, 2, 5]
    middle = found.probabilities[:, 12, 12].tolist()
    share = MOST_CARRIED
    # 1 is new: as it is now. 2 is gone: fades. 5 is in both: mixed.
    assert middle == pytest.approx([0.4, 0.9 * share, 0.5 * share + 0.1 * (1 - share)], abs=0.01)
    for _ in range(100):
        found = next_maps(steadier, still, maps([0.4, 0.1], [1, 5]))
    assert found.classes.tolist() == [1, 5]


def test_votes_just_below_the_limit_are_carried() -> None:
    still, steadier = scene(0), Steadier(0.7)
    for votes in ([100, 60, 50], [100, 60, 50], [100, 54, 55]):
        carried = steadier.carry_votes(torch.tensor(votes), steadier.observe(still))
    assert carried.argsort(descending=True).tolist() == [0, 1, 2]


def test_a_state_goes_on_bit_for_bit() -> None:
    frames = [scene(0), scene(0), scene(3), scene(3), scene(3)]
    draw = torch.Generator().manual_seed(1)
    found = [ClassMaps(torch.rand(2, 24, 24, generator=draw), torch.tensor([0, 4])) for _ in frames]
    whole = Steadier(0.8)
    expected = [next_maps(whole, f, m) for f, m in zip(frames, found, strict=True)]
    first, second = Steadier(0.8), Steadier(0.8)
    for index in range(3):
        next_maps(first, frames[index], found[index])
        first.carry_votes(torch.tensor([5, 6]), None)
    second.from_bytes(first.to_bytes())
    for index in (3, 4):
        again = next_maps(second, frames[index], found[index])
        assert torch.equal(again.probabilities, expected[index].probabilities)
    assert Steadier(1.0).to_bytes()
    second.from_bytes(Steadier(1.0).to_bytes())
    assert second.state() == {}


@pytest.fixture(scope="module")
def model() -> ErrSeg:
    torch.manual_seed(0)
    return ErrSeg(PRESETS["tiny"]).eval()


@pytest.mark.parametrize("keep", [3, "auto"])
def test_frames_at_once_are_frames_one_by_one(model: ErrSeg, keep: Keep) -> None:
    text = torch.nn.functional.normalize(torch.randn(9, model.config.embedding_dim), dim=1)
    frames = [scene(0, (60, 80)), scene(0, (60, 80)), scene(1, (60, 80)), scene(1, (60, 80))]
    frames[3] = frames[3] // 16 * 16  # near, but not the same
    one, all_of_them = Steadier(0.9), Steadier(0.9)
    single = [predict(model, [frame], text, keep=keep, steadier=one)[0] for frame in frames]
    batch = predict(model, frames, text, keep=keep, steadier=all_of_them)
    for alone, together in zip(single, batch, strict=True):
        assert torch.equal(alone.classes, together.classes)
        torch.testing.assert_close(alone.probabilities, together.probabilities)
    plain = predict(model, frames, text, keep=keep)
    assert torch.equal(plain[0].probabilities, batch[0].probabilities)
    assert not torch.equal(plain[3].probabilities, batch[3].probabilities)


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.1, float("nan")])
def test_strengths_outside_are_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match="steadiness is"):
        Steadier(strength)
