"""Broken model files: every one must be refused quickly, by an error of this package."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from gradiron.errors import GradironError, ModelError
from gradiron.importing.meaning import Meaning

SECONDS = 2.0
"""More than any file of a few kilobytes may take, on a busy machine."""
NAME = "a.model"

Parse = Callable[[bytes, str], Meaning]


def refuse(parse: Parse, content: bytes, *texts: str) -> str:
    """The message of the error that a file must give, with these texts in it."""
    start = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        parse(content, NAME)
    assert time.perf_counter() - start < SECONDS
    message = str(caught.value)
    assert NAME in message
    for text in texts:
        assert text in message, message
    return message


def try_to_read(parse: Parse, content: bytes) -> bool:
    """Whether a mutated file is refused; else it is a network with shapes."""
    start = time.perf_counter()
    try:
        meaning = parse(content, NAME)
    except GradironError as error:
        refused = str(error)
    else:
        assert len(meaning.shapes) > 1
        refused = ""
    assert time.perf_counter() - start < SECONDS
    assert not refused or refused.startswith(NAME)
    return bool(refused)
