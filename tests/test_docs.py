"""README.md says what is true: commands, options, files, links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import errseg_cli
from errseg_cli.main import app

ROOT = Path(errseg_cli.__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
COMMAND = get_command(app)


def shown_commands() -> list[list[str]]:
    """Words after `errseg` of every command line in a console block, comments left out."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            for part in line.split("|"):
                words = shlex.split(part.replace("…", ""), comments=True)
                if "errseg" in words:
                    found.append(words[words.index("errseg") + 1 :])
    return found


def command_of(words: list[str]) -> tuple[object, list[str]]:
    """The (sub)command that the words name, and the words after its name."""
    command: object = COMMAND
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"errseg has no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def leaves(command: object, name: str = "errseg") -> list[str]:
    if not hasattr(command, "commands"):
        return [name]
    return [
        leaf for word, sub in command.commands.items() for leaf in leaves(sub, f"{name} {word}")
    ]


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_commands_in_the_readme_have_the_options_shown(words: list[str]) -> None:
    command, rest = command_of([word for word in words if word != "--help"])
    known = {name for parameter in command.params for name in parameter.opts}  # type: ignore[attr-defined]
    used = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z0]", word)}
    assert used <= known


@pytest.mark.parametrize("name", leaves(COMMAND))
def test_every_command_is_in_the_readme(name: str) -> None:
    assert name in README


def test_options_that_the_text_names_exist() -> None:
    known = {
        name
        for leaf in leaves(COMMAND)
        for parameter in command_of(leaf.split()[1:])[0].params  # type: ignore[attr-defined]
        for name in parameter.opts
    }
    named = set(re.findall(r"`(--[a-z-]+)", README))
    assert named
    assert named <= known


def test_the_file_tree_is_complete_and_true() -> None:
    tree = README.split("## Where things are")[1]
    named = set(re.findall(r"\b(\w+\.py)\b", tree))
    there = {path.name for path in (ROOT / "errseg").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert there <= named
    assert named <= there | {path.name for path in (ROOT / "tests").rglob("*.py")}


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    local = [link for link in links if not link.startswith("http")]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
