"""What the documents name exists: links, anchors, files, commands and options."""

import re
from pathlib import Path

import click
import pytest
import typer

from edgeguard import __version__
from edgeguard.cli.app import app
from edgeguard.cli.demo import NEXT

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bundles/**/*.md")],
    key=lambda path: path.relative_to(ROOT).as_posix(),
)


def name(path):
    return path.relative_to(ROOT).as_posix()


def prose(text):
    """The text without fenced code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    """The anchors that GitHub makes of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_relative_links_lead_somewhere(path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file) if file else path
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in anchors(place)):
            broken.append(target)
    assert not broken


def commands(text):
    """The commands of code blocks and of inline code, each as its line."""
    for block in re.findall(r"^```(?:sh|console|bash|text)?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            found = re.match(r"\s*(?:\$ |- )?(?:\w+=\S+ )*(?:\.venv/bin/)?edgeguard (?=[a-z])(.*)", line)
            if found:
                yield found[1].partition(" #")[0].strip()
    for code in re.findall(r"`([^`\n]+)`", prose(text)):
        # The bundle format quotes a sentence that begins like a command.
        if re.match(r"edgeguard (?!published test key)[a-z]", code):
            yield code.removeprefix("edgeguard ")


def unknown(line):
    """What of a command line does not exist; None if all of it does."""
    command = typer.main.get_command(app)
    context = click.Context(command)
    words = line.split(" -- ")[0].split()
    while words and hasattr(command, "get_command"):
        first = words[0]
        if "|" in first:  # policy check|test|explain
            found = [unknown(" ".join([*line.split()[:1], one])) for one in first.split("|")]
            return next((text for text in found if text), None)
        inner = command.get_command(context, first)
        if inner is None:
            return f"{line}: no command {first}"
        command, words = inner, words[1:]
    options = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    options |= {"--help", "-h"}
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("-") and len(option) > 1 and option.strip("-.,`") and option not in options:
            return f"{line}: no option {option}"
    return None


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_commands_and_their_options_exist(path):
    assert [text for line in commands(path.read_text()) if (text := unknown(line))] == []


def test_the_readme_names_commands_that_are_found_here():
    lines = list(commands((ROOT / "README.md").read_text()))
    assert {line.split()[0] for line in lines} >= {
        "init",
        "policy",
        "dev",
        "bundle",
        "run",
        "status",
        "server",
    }


def test_the_check_can_fail():
    assert unknown("bundel build") == "bundel build: no command bundel"
    assert unknown("run --confg x") == "run --confg x: no option --confg"
    assert unknown("run --config x") is None


def test_what_the_demo_says_to_try_next_exists():
    for line in NEXT:
        command = re.split(r"\s{2,}", line)[0]
        assert unknown(command.removeprefix("edgeguard ")) is None
        for word in command.split():
            if word.startswith("bundles/"):
                assert (ROOT / word).is_dir(), word


def test_files_that_the_documents_name_exist():
    missing = []
    for path in DOCUMENTS:
        for word in re.findall(
            r"`((?:docs|config|bundles|edgeguard|tests)/[\w./-]+)`", prose(path.read_text())
        ):
            if not (ROOT / word).exists():
                missing.append(f"{name(path)}: {word}")
    assert not missing


def test_the_changelog_knows_this_version():
    assert re.search(
        rf"^## .*(?:{re.escape(__version__)}|Unreleased)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)) <= targets
