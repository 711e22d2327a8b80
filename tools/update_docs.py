"""Run the examples of every page in docs/ and put what they print below them, so that no output is typed by hand.

Usage: .venv/bin/python tools/update_docs.py

The ``python`` blocks of a page are one script, run from top to bottom; the lines of a ``console`` block that begin with
``$ chainfx`` are commands, run in the same empty folder. What a block prints stands in a ``text`` block below it.

A block that begins with ``python needs torchao g++`` is run only where all these packages and programs are there. Else
it and what it printed stay as they are.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from chainfx.cli import app

DOCS = Path(__file__).parent.parent / "docs"
_EXAMPLE = re.compile(r"```(python|console)((?: needs [^\n]*)?)\n(.*?)```\n(?:\n```text\n.*?```\n)?", flags=re.DOTALL)


def refreshed(page: str, name: str = "page") -> str:
    """The text of a page with the output of all its examples as it is now."""
    namespace: dict[str, Any] = {"__name__": name}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return _EXAMPLE.sub(lambda found: _example(found, namespace), page)


def _example(found: re.Match[str], namespace: dict[str, Any]) -> str:
    language, needs, code = found.groups()
    if not all(map(_is_there, needs.split()[1:])):
        return found[0]
    output = _python(code, namespace) if language == "python" else _commands(code)
    shown = f"\n```text\n{output.rstrip()}\n```\n" if output.strip() else ""
    return f"```{language}{needs}\n{code}```\n{shown}"


def _is_there(needed: str) -> bool:
    """Whether a package can be imported, or a program be called."""
    return importlib.util.find_spec(needed) is not None or shutil.which(needed) is not None


def _python(code: str, namespace: dict[str, Any]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, namespace["__name__"], "exec"), namespace)
    return output.getvalue()


def _commands(code: str) -> str:
    """What the commands print, errors included."""
    outputs = []
    for line in code.splitlines():
        prompt, program, *arguments = shlex.split(line)
        if (prompt, program) != ("$", "chainfx"):
            raise ValueError(f"{line!r} is not a chainfx command; only those are run.")
        outputs.append(CliRunner().invoke(app, arguments, catch_exceptions=False).output)
    return "".join(outputs)


def main() -> None:
    """Rewrite every page whose examples print something else now."""
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text()
        new = refreshed(page, path.name)
        path.write_text(new)
        print(f"{path.relative_to(DOCS.parent)}: {'changed' if new != page else 'as it was'}")


if __name__ == "__main__":
    main()
