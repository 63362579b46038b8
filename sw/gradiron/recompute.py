"""Activations that are computed twice instead of being kept: time for memory, without a change.

`recompute` takes a schedule and names of activations, and gives a schedule in which each of them is
dropped after the forward pass and computed again directly before the backward pass needs it. The
bits are the same: the second computation has an exponent entry of its own, whose tracker begins
as that of the first and sees the same sums, so that both always hold the same exponent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from gradiron.arch.config import TENSORS
from gradiron.arch.isa import Pass
from gradiron.graph import TRAIN, CountStep, Schedule, Step
from gradiron.operations import Product

AGAIN = ".again"
"""What the names of tensors and entries of the second computation end with."""


@dataclass(frozen=True)
class Candidate:
    """Tensors that the same forward steps make, and that the backward pass reads.

    Attributes
    ----------
    names : tuple of str
    steps : tuple of Product
        Steps that make them.
    """

    names: tuple[str, ...]
    steps: tuple[Product, ...]


def turning_point(steps: Iterable[Step]) -> int:
    """Index of the first step that is not part of the forward pass."""
    count = 0
    for count, step in enumerate(steps):
        if isinstance(step, CountStep) or step.pass_ != Pass.FORWARD:
            return count
    return count + 1


def candidates(schedule: Schedule) -> list[Candidate]:
    """What could be computed again, in the order of the forward pass."""
    steps = schedule.programs.get(TRAIN, ())
    turn = turning_point(steps)
    needed = {name for step in steps[turn:] for name in step.reads}
    changed = {name for step in steps[turn:] for name in step.writes}
    makers: dict[str, list[Product]] = {}
    for step in steps[:turn]:
        if isinstance(step, Product):
            for name in step.writes:
                makers.setdefault(name, []).append(step)
    found: dict[tuple[str, ...], Candidate] = {}
    for name, made in makers.items():
        tensor = schedule.tensors[name]
        names = tuple(dict.fromkeys(other for step in made for other in step.writes))
        kept = {schedule.tensors[other].kind for other in names} <= {"activation", "argmax"}
        if name in needed and kept and not tensor.persistent and not changed.intersection(names):
            found[names] = Candidate(names, tuple(made))
    return list(found.values())


def _again(product: Product, names: dict[str, str], entries: dict[str, str]) -> Product:
    """The second computation: its results have other names."""
    result = dataclasses.replace(
        product.o,
        tensor=names.get(product.o.tensor, product.o.tensor),
        low=names.get(product.o.low, product.o.low),
    )
    a, b, o, *rest = product.exponents
    exponents = (a, b, entries.get(o, o), *rest)
    return dataclasses.replace(product, o=result, exponents=exponents)


def _renamed(step: Step, names: dict[str, str]) -> Step:
    """A step that reads other tensors; what it writes stays."""
    if not isinstance(step, Product) or not set(names).intersection(step.reads):
        return step
    changes: dict[str, object] = {
        "a": dataclasses.replace(step.a, tensor=names.get(step.a.tensor, step.a.tensor)),
        "b": dataclasses.replace(step.b, tensor=names.get(step.b.tensor, step.b.tensor)),
    }
    for field in ("mask", "skip"):
        if getattr(step, field, ""):
            changes[field] = names.get(getattr(step, field), getattr(step, field))
    return dataclasses.replace(step, **changes)


def recompute(schedule: Schedule, chosen: Iterable[Candidate]) -> Schedule | None:
    """A schedule in which the chosen ones are computed twice.

    None where the exponent table has no entries left for them.
    """
    steps = schedule.programs[TRAIN]
    turn = turning_point(steps)
    forward, backward = list(steps[:turn]), list(steps[turn:])
    tensors, exponents, twins = dict(schedule.tensors), dict(schedule.exponents), {}
    order = {step: index for index, step in enumerate(forward)}
    # Later ones first: what computes them again may read what has to be computed again before.
    for candidate in sorted(chosen, key=lambda c: -order[c.steps[0]]):
        names = {name: name + AGAIN for name in candidate.names}
        entries: dict[str, str] = {}
        if any(step.track for step in candidate.steps):
            entry = candidate.steps[-1].exponents[2]
            entries[entry] = twin = entry + AGAIN
            twins[twin] = entry
            exponents[twin] = len(exponents)
        for name, again in names.items():
            tensors[again] = dataclasses.replace(
                tensors[name],
                name=again,
                exponent=entries.get(tensors[name].exponent, tensors[name].exponent),
            )
        first = next(i for i, step in enumerate(backward) if set(names).intersection(step.reads))
        repeated: list[Step] = [_again(step, names, entries) for step in candidate.steps]
        backward = [
            *backward[:first],
            *repeated,
            *(_renamed(step, names) for step in backward[first:]),
        ]
    if len(exponents) > TENSORS:
        return None
    programs = {**schedule.programs, TRAIN: (*forward, *backward)}
    return dataclasses.replace(
        schedule, tensors=tensors, exponents=exponents, programs=programs, twins=twins
    )


__all__ = ["AGAIN", "Candidate", "candidates", "recompute", "turning_point"]
