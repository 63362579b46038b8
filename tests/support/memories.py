"""A memory that knows which tensor every byte belongs to: plans are run on it."""

from __future__ import annotations

from gradiron.memory import Plan


def run(found: Plan, program: str) -> None:
    """Execute a program of a plan on labels: every step must find all that it reads.

    A step that writes the very bytes of its own mask or skip is allowed to, and so are later steps
    that write other elements of the same result under the same mask or skip.
    """
    schedule = found.schedule
    memory: list[list[str]] = [[""] * size for size in found.config.regions]

    def label(name: str) -> None:
        p = found.placements[name]
        memory[p.region][p.offset : p.end] = [name] * p.tensor.bytes

    def seen(name: str) -> set[str]:
        p = found.placements[name]
        return set(memory[p.region][p.offset : p.end])

    kept = [n for n, t in schedule.tensors.items() if t.persistent]
    given = [n for n, t in schedule.tensors.items() if t.host_writes and _used(found, program, n)]
    for name in kept + given:
        label(name)
    for time, step in enumerate(schedule.programs[program]):
        soft = [n for n in (getattr(step, "mask", ""), getattr(step, "skip", "")) if n]
        hard = list(step.reads)
        for name in soft:
            hard.remove(name)
        for name in hard:
            assert seen(name) == {name}, f"{name} is {seen(name)} in step {time}"
        for name in soft:
            assert seen(name) in ({name}, set(step.writes) & seen(name)), (name, time, seen(name))
        for result in step.writes:
            one = found.placements[result]
            for name in dict.fromkeys([*hard, *soft]):
                other = found.placements[name]
                meet = one.region == other.region and (
                    one.offset < other.end and other.offset < one.end
                )
                if name != result and meet:
                    assert name in soft, f"{result} overwrites {name} in step {time}"
                    assert name not in hard
                    assert one.offset == other.offset
            label(result)
    for name, tensor in schedule.tensors.items():
        if tensor.persistent or (tensor.host_reads and _used(found, program, name)):
            assert seen(name) == {name}, f"{name} did not survive"


def _used(found: Plan, program: str, name: str) -> bool:
    steps = found.schedule.programs[program]
    return any(name in (*step.reads, *step.writes) for step in steps)
