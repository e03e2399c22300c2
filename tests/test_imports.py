"""The house rules that a reader relies on: who imports whom, and what the library never does."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import errseg
import errseg_cli

LIBRARY = Path(errseg.__file__).parent
COMMAND = Path(errseg_cli.__file__).parent

# From the bottom up. A module imports only from lines above its own, or from its own line.
LAYERS = [
    {"__init__", "errors"},
    {"config", "records", "files", "catalogue", "outputs", "read_options", "process"},
    {"figures", "palette", "summary", "journal", "ahead", "behind", "batches", "halving", "sound"},
    {"video_codecs", "video_joining"},
    {"vocabulary", "areas", "tuning"},
    {"images", "name_tags", "render", "encoding", "videos", "video_writer"},
    {"sources", "merge"},
    {"reading"},
    {"sinks", "plan"},
    {"videos_in_hand"},
    {"pipeline"},
    {"resume"},
    {"stages"},
    {"devices", "model"},
    {"published"},
    {"download"},
    {"weights"},
    {"embedding_cache"},
    {"steady"},
    {"inference"},
    {"windows", "benchmark"},
    {"segmenter"},
    {"run_record"},
    {"datasets"},
    {"benchmarks"},
    {"evaluation"},
    {"training"},
]
HEAVY = {"torch", "timm", "open_clip", "numpy", "cv2", "PIL", "rich", "av"}


def modules(root: Path) -> list[Path]:
    return sorted(root.rglob("*.py"))


def part_of(path: Path) -> str:
    """The first name below the package: a module, or a package within it."""
    return path.relative_to(LIBRARY).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def level(part: str) -> int:
    found = [index for index, layer in enumerate(LAYERS) if part in layer]
    assert found, f"errseg/{part} is new: give it its place in LAYERS"
    return found[0]


@pytest.mark.parametrize("path", modules(LIBRARY), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_imports_downwards_only(path: Path) -> None:
    parts = {layer_part for layer in LAYERS for layer_part in layer}
    for name in imported(path):
        package, *rest = name.split(".")
        assert package != "errseg_cli", f"{path.name} imports {name}"
        if package == "errseg" and rest and rest[0] in parts and part_of(path) != "__init__":
            assert level(rest[0]) <= level(part_of(path)), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", modules(LIBRARY), ids=lambda path: str(path.relative_to(LIBRARY)))
def test_the_library_never_prints_or_exits(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("print", "exit", "quit", "sys.exit", "os._exit"), (
                f"{path.name}:{node.lineno} calls {name}"
            )


def test_the_command_never_imports_click() -> None:
    for path in modules(COMMAND):
        assert not {name for name in imported(path) if name.split(".")[0] == "click"}, path.name


@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("import errseg", set()),
        ("from errseg import ErrsegError", set()),
        ("import errseg_cli.main", set()),
        ("from errseg import load_vocabulary; load_vocabulary('sky, sea')", {"numpy"}),
        ("import errseg.pipeline, errseg.sinks", {"numpy", "cv2", "PIL", "av"}),
    ],
)
def test_heavy_packages_are_imported_where_they_are_used(code: str, allowed: set[str]) -> None:
    code += "; import sys; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(out.stdout.split()) & HEAVY <= allowed


def test_public_names_are_there() -> None:
    for name in errseg.__all__:
        assert getattr(errseg, name) is not None
        assert name in dir(errseg)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = errseg.nonsense
