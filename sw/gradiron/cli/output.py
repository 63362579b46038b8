"""What commands give: tables for people, JSON for programs, files where they were asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gradiron.errors import DataError

Row = dict[str, Any]


def check_output(*paths: str | None) -> None:
    """Refuse files that cannot be written before the work begins, not after it.

    Raises
    ------
    DataError
    """
    for path in paths:
        if path is None:
            continue
        folder = Path(path).absolute().parent
        if not folder.is_dir():
            raise DataError(f"{path} cannot be written: the folder {folder} does not exist")
        if Path(path).is_dir():
            raise DataError(f"{path} cannot be written: it is a folder; name a file")


def write_file(path: str, content: str | bytes) -> None:
    """Write a file.

    Raises
    ------
    DataError
        Where that fails.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None


def read_file(path: str) -> bytes:
    """Read a file.

    Raises
    ------
    DataError
        Where that fails.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def write_json(path: str | None, value: object) -> None:
    """Write a result, where one is wanted."""
    if path is not None:
        write_file(path, json.dumps(value, indent=2) + "\n")


def note(text: str) -> None:
    """A line about the progress of the work, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on standard output: with rich where it is installed, else plain text."""
    texts = [[_shown(value) for value in row] for row in rows]
    numeric = [
        all(isinstance(row[i], int | float) or row[i] is None for row in rows)
        for i in range(len(columns))
    ]
    try:
        table_class: Any = import_module("rich.table").Table
        console_class: Any = import_module("rich.console").Console
    except ImportError:
        print(plain_table(title, columns, texts, numeric))
        return
    table = table_class(title=title, title_justify="left")
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in texts:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 200
    console_class(width=width, markup=False, highlight=False).print(table)


def plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]
) -> str:
    """The same without rich."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [title] if title else []
    for row in (columns, ["-" * width for width in widths], *rows):
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
