"""Checkpoints from Hugging Face: on request, whole, verified, gone on with, refused in words."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import make_tiny, published_state, tiny_model, write
from hub import LIST, RESOLVE, STORE, Hub
from huggingface_hub import constants

from errseg import Segmenter, catalogue
from errseg import download as module
from errseg.catalogue import CATALOGUE, ModelEntry, own_path
from errseg.config import BASE, PRESETS
from errseg.download import RemoteFile, choose, download
from errseg.errors import WeightsError, WriteError

NAME = "errseg-base"
FILE = "ERR-Seg/base/model_final.pth"
PARAMETERS = {entry.name: entry.parameters for entry in CATALOGUE}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("published") / "model_final.pth"
    return write(path, {"model": published_state(tiny_model())}).read_bytes()


@pytest.fixture
def hub(checkpoint: bytes) -> Iterator[Hub]:
    with Hub({FILE: checkpoint}) as hub:
        yield hub


@pytest.fixture(autouse=True)
def setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tiny model, an empty cache, no waiting, and an address at which nobody answers."""
    make_tiny(monkeypatch, NAME)
    parameters = sum(p.numel() for p in tiny_model().parameters())
    monkeypatch.setattr(module, "CATALOGUE", (ModelEntry(NAME, parameters),))
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        point_to(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")


@pytest.fixture
def online(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    point_to(monkeypatch, hub.endpoint)
    return hub


def point_to(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    url = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)


def refusal() -> str:
    with pytest.raises(WeightsError) as caught:
        download(NAME)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{NAME} is not here and cannot be downloaded: ")
    for advice in ("huggingface.co/lchen1019/ERR-Seg", "--weights FILE", "errseg-mini"):
        assert advice in message
    assert not own_path(NAME).exists()
    return message


def parts() -> list[bytes]:
    return [path.read_bytes() for path in own_path(NAME).parent.glob("*.part")]


# --- as it should be ------------------------------------------------------------------------


def test_a_named_model_is_downloaded_once_and_then_runs_without_a_network(
    online: Hub, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8).numpy()
    first = Segmenter(NAME, classes="sky, sea", device="cpu")(image)
    assert own_path(NAME).read_bytes() == checkpoint
    assert parts() == []
    asked = online.asked_for_weights
    assert [path for path, _ in asked] == [LIST, RESOLVE + FILE, STORE + FILE]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = Segmenter(NAME, classes="sky, sea", device="cpu")(image)
    assert online.asked_for_weights == asked
    assert (again.scores == first.scores).all()
    by_hand = Segmenter(weights=own_path(NAME), classes="sky, sea", device="cpu")(image)
    assert (by_hand.scores == first.scores).all()


def test_progress_is_told_from_nothing_to_all(online: Hub, checkpoint: bytes) -> None:
    told: list[tuple[RemoteFile, int]] = []
    download(NAME, lambda remote, received: told.append((remote, received)))
    assert {remote.name for remote, _ in told} == {FILE}
    assert (told[0][0].size, told[0][0].licence) == (len(checkpoint), "mit")
    received = [count for _, count in told]
    assert (received[0], received[-1]) == (0, len(checkpoint))
    assert received == sorted(received) and len(received) > 2


def test_nothing_else_asks_the_network(online: Hub, tiny_weights: Path) -> None:
    Segmenter(classes="sky", device="cpu", weights=tiny_weights)
    with pytest.raises(WeightsError):
        Segmenter(NAME, classes="sky", weights=Path("absent.pth"))
    assert catalogue.find_weights(NAME) is None
    assert online.asked == []


# --- broken off -----------------------------------------------------------------------------


def test_a_download_that_breaks_off_goes_on_where_it_broke(online: Hub, checkpoint: bytes) -> None:
    online.breaks = [1000, 0, 5]
    assert download(NAME).read_bytes() == checkpoint
    assert online.ranges_asked == ["bytes=0-", "bytes=1000-", "bytes=1000-", "bytes=1005-"]


def test_another_process_goes_on_where_one_ended(online: Hub, checkpoint: bytes) -> None:
    online.breaks = [1000] + module.TRIES * [0]
    assert f"broke off after 1000 of {len(checkpoint)} bytes" in refusal()
    assert parts() == [checkpoint[:1000]]
    told: list[int] = []
    assert download(NAME, lambda _, received: told.append(received)).read_bytes() == checkpoint
    assert told[0] == 1000
    assert online.ranges_asked[-1] == "bytes=1000-"
    assert parts() == []


def test_a_server_without_ranges_begins_anew(online: Hub, checkpoint: bytes) -> None:
    online.ranges = False
    online.breaks = [100_000, 150_000]
    assert download(NAME).read_bytes() == checkpoint


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(online: Hub, checkpoint: bytes, status: int) -> None:
    online.refusals = [status, status]
    assert download(NAME).read_bytes() == checkpoint


def test_a_server_that_stays_busy_is_left_alone(online: Hub) -> None:
    online.refusals = 100 * [503]
    assert "answers 503" in refusal()
    assert len(online.ranges_asked) == module.TRIES


# --- wrong ----------------------------------------------------------------------------------


def test_wrong_bytes_are_refused_and_not_kept(online: Hub, checkpoint: bytes) -> None:
    middle = len(checkpoint) // 2
    changed = bytes([checkpoint[middle] ^ 1])
    online.sent[FILE] = checkpoint[:middle] + changed + checkpoint[middle + 1 :]
    assert "came damaged" in refusal()
    assert parts() == []
    online.sent.clear()
    assert download(NAME).read_bytes() == checkpoint


def test_damage_in_an_earlier_part_is_found(online: Hub, checkpoint: bytes) -> None:
    online.breaks = [1000] + module.TRIES * [0]
    refusal()
    (part,) = own_path(NAME).parent.glob("*.part")
    part.write_bytes(b"x" * 1000)
    assert "came damaged" in refusal()
    assert parts() == []
    assert download(NAME).read_bytes() == checkpoint


@pytest.mark.parametrize("change", [-100, 100])
def test_a_length_that_is_not_the_listed_one_is_refused_at_once(
    online: Hub, checkpoint: bytes, change: int
) -> None:
    online.sent[FILE] = (checkpoint + bytes(100))[: len(checkpoint) + change]
    listed, sent = len(checkpoint), len(checkpoint) + change
    assert f"has {listed} bytes as listed and {sent} as sent" in refusal()
    assert parts() == [b""]


def test_fewer_bytes_than_announced_are_refused(online: Hub, checkpoint: bytes) -> None:
    online.sent[FILE], online.announced = checkpoint[:-100], len(checkpoint)
    assert f"broke off after {len(checkpoint) - 100} of {len(checkpoint)} bytes" in refusal()


def test_more_bytes_than_listed_are_refused(online: Hub, checkpoint: bytes) -> None:
    online.sent[FILE], online.announced = checkpoint + bytes(100), len(checkpoint)
    assert f"came with {len(checkpoint) + 100} bytes" in refusal()
    assert parts() == []


def test_what_is_no_checkpoint_is_refused_and_not_kept(online: Hub, checkpoint: bytes) -> None:
    online.files[FILE] = bytes(len(checkpoint))
    assert f"{FILE} is no checkpoint" in refusal()
    assert parts() == []


def test_another_model_under_the_name_is_refused(
    online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, NAME, BASE)
    make_tiny(monkeypatch, "errseg-large")
    assert f"{FILE} is errseg-large" in refusal()
    assert parts() == []


# --- refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "hint"), [(401, "HF_TOKEN"), (403, "HF_TOKEN"), (404, "")])
def test_an_answer_that_is_a_refusal(online: Hub, status: int, hint: str) -> None:
    online.status = status
    assert f"{online.endpoint} answers {status}" in refusal()
    assert hint in refusal()
    online.status, online.refusals = 0, 2 * [status]
    assert f"{online.endpoint} answers {status}" in refusal()
    assert len(online.ranges_asked) == 1


def test_no_server(hub: Hub) -> None:
    assert f"no proper answer from {constants.ENDPOINT}" in refusal()


def test_offline(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids it" in refusal()
    assert online.asked == []


@pytest.mark.parametrize("listing", [b"<html>Log in first</html>", b"[]", b'{"siblings": 3}'])
def test_a_list_that_is_none(online: Hub, listing: bytes) -> None:
    online.listing = listing
    assert f"no proper answer from {online.endpoint}" in refusal()


def test_a_repository_without_the_model(online: Hub) -> None:
    online.files = {"notes.pth": b"short"}
    assert "nothing fits: notes.pth (5 bytes)" in refusal()
    online.files = {}
    assert "nothing fits: nothing" in refusal()


def test_a_cache_that_cannot_be_written(online: Hub, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file where a folder should be")
    with pytest.raises(WriteError, match="cannot write"):
        download(NAME)


# --- which file -----------------------------------------------------------------------------


def remote(name: str, size: float) -> RemoteFile:
    return RemoteFile(name, "", round(size), "", "")


BARE = {name: 4 * count + 200_000 for name, count in PARAMETERS.items()}
BASE_SIZE, LARGE_SIZE = BARE["errseg-base"], BARE["errseg-large"]


@pytest.mark.parametrize(
    ("base", "large"),
    [
        (remote("x.pth", BASE_SIZE), remote("y.pth", LARGE_SIZE)),
        (remote("ERR-Seg_Base.pth", 3 * BASE_SIZE), remote("ERR-Seg_Large.pth", LARGE_SIZE)),
        (remote("B/model_final.pth", 2 * BASE_SIZE), remote("L/model_final.pth", 3 * LARGE_SIZE)),
        (remote("convnextB.pth", BASE_SIZE / 2 + 1e6), remote("convnextL.pth", LARGE_SIZE)),
    ],
)
def test_the_file_is_chosen_by_name_and_size(
    base: RemoteFile, large: RemoteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CATALOGUE", CATALOGUE)
    rest = [remote("clip.bin", 1e6), remote("coco.json", BASE_SIZE), remote("logs.tar", LARGE_SIZE)]
    for files in ([base, large, *rest], [*rest, large, base]):
        assert choose("errseg-base", files) == base
        assert choose("errseg-large", files) == large


def test_bare_weights_go_before_training_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CATALOGUE", CATALOGUE)
    bare = remote("base/model_final.pth", BASE_SIZE)
    assert choose(NAME, [remote("base/model_0079999.pth", 2.5 * BASE_SIZE), bare]) == bare


def test_of_several_that_fit_none_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CATALOGUE", CATALOGUE)
    with pytest.raises(WeightsError, match=r"several that fit: base-1\.pth, base-2\.pth"):
        choose(NAME, [remote("base-1.pth", BASE_SIZE), remote("base-2.pth", BASE_SIZE)])


# --- the environment ------------------------------------------------------------------------

COMMAND = """
import dataclasses, sys
from errseg import download
from errseg.catalogue import ModelEntry
from errseg.config import PRESETS
PRESETS["errseg-base"] = dataclasses.replace(PRESETS["tiny-convnext"], name="errseg-base")
download.CATALOGUE = (ModelEntry("errseg-base", int(sys.argv.pop(1))),)
download.WAIT_S = 0
from errseg_cli.main import main
main()
"""


def fetch(**environment: str) -> subprocess.CompletedProcess[str]:
    """`errseg weights fetch errseg-base`, with these variables and the cache in HF_HOME."""
    count = str(module.CATALOGUE[0].parameters)
    return subprocess.run(
        [sys.executable, "-c", COMMAND, count, "weights", "fetch", NAME],
        env={**os.environ, "HF_HUB_OFFLINE": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_obeys_the_variables_of_hugging_face(
    hub: Hub, checkpoint: bytes, tmp_path: Path
) -> None:
    home = str(tmp_path / "home")
    hub.breaks = [1000]
    result = fetch(HF_HOME=home, HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    path = Path(result.stdout.removesuffix("\n"))
    assert path == tmp_path / "home" / "assets" / "errseg" / f"{NAME}.pth"
    assert path.read_bytes() == checkpoint
    headline, *lines = result.stderr.splitlines()
    assert headline.startswith(f"errseg: downloading {hub.endpoint}/lchen1019/ERR-Seg/resolve/")
    assert headline.endswith(f"{FILE} ({len(checkpoint) / 1e6:.0f} MB, licence: mit)")
    assert lines[-1].startswith("errseg: ") and len(lines) <= 10
    assert hub.ranges_asked == ["bytes=0-", "bytes=1000-"]
    asked = len(hub.asked)
    assert fetch(HF_HOME=home, HF_HUB_OFFLINE="1").stdout == result.stdout
    assert len(hub.asked) == asked


def test_the_command_goes_through_a_proxy(hub: Hub, tmp_path: Path) -> None:
    hub.status = 403
    result = fetch(
        HF_HOME=str(tmp_path),
        HF_ENDPOINT="http://hub.invalid",
        HTTP_PROXY=hub.endpoint,
        NO_PROXY="",
    )
    assert "http://hub.invalid answers 403" in result.stderr
    assert hub.asked_for_weights == [(LIST, None)]


def test_the_command_without_a_network_says_in_one_line_what_to_do(tmp_path: Path) -> None:
    result = fetch(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "--weights FILE" in result.stderr
