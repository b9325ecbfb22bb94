"""The command as a process of its own: pipes, disks, exit codes, and what it loads."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import regard

pytestmark = pytest.mark.once

PROGRAM = [sys.executable, "-c", "from regard.cli import main; main()"]
TEXT = "the cat sat on the mat because it was warm"  # whose words the model knows


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        capture_output=True,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["look", "hello", "--layer", "x"], "'--layer'"),
        (["look", "hello", "--frob"], "No such option: --frob"),
        (["stare"], "No such command 'stare'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(arguments: list[str], message: str) -> None:
    ran = command(*arguments)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert ran.stderr.startswith("regard: ")
    assert message in ran.stderr


def test_version() -> None:
    assert command("--version").stdout == f"{regard.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["look", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom regard.cli import main\ntry:\n    main()\nfinally:\n"
        "    print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert {"torch", "transformers", "jinja2"}.isdisjoint(done.stderr.split())
    assert "look" in done.stdout


def test_help_reads_well() -> None:
    """In words, without types, and no wider than the terminal."""
    told = command("look", "--help", env={**os.environ, "COLUMNS": "80"}).stdout
    assert "look [OPTIONS] [TEXT]\n" in told
    assert "  --layer N " in told
    assert "  --json    " in told
    assert not re.search(r"<\w+|INTEGER|bool|[│╭]", told)
    assert max(map(len, told.splitlines())) <= 80
    assert "..." not in command("--help").stdout.replace("[ARGS]...", "")


def test_without_typer_one_line_tells() -> None:
    code = "import sys; sys.modules['typer'] = None; import regard.cli"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == ("regard: the command line needs typer: pip install 'regard[look]'\n")


def test_the_real_command_in_a_pipe(folder: Path, tmp_path: Path) -> None:
    """A terminal that cannot show a letter gets another sign, and no spinner is seen."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "70"}
    done = command("look", TEXT, "--model", str(folder), cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "?warm? looks at" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 70
    assert "\x1b" not in done.stdout


def test_a_reader_that_leaves_early_keeps_the_page(folder: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*PROGRAM, "look", TEXT, "--model", str(folder)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
    assert (tmp_path / "regard-look.html").is_file()


def test_a_full_disk_behind_the_output_is_one_line(folder: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [*PROGRAM, "look", TEXT, "--model", str(folder)],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (ran.returncode, ran.stderr) == (2, "regard: output: No space left on device\n")
