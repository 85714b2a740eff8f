from dataclasses import replace

import pytest

from onnx_serve.memory import (
    INTEGERS_DOCUMENT,
    NUMBERS_DOCUMENT,
    OBJECTS_DOCUMENT,
    HostMemory,
    MemoryEstimate,
    MemoryWatch,
    margin_bytes,
    release_and_settle,
)

MIB, GIB = 1 << 20, 1 << 30
HOST = HostMemory(
    2,
    MIB,
    64 * MIB,
    16 * MIB,
    spool_is_memory=False,
    output_share=0.1,
    several_outputs=False,
    document=NUMBERS_DOCUMENT,
    worst_multiple=20,
)


@pytest.mark.parametrize(
    ("limit", "margin"),
    [(512 * MIB, 64 * MIB), (2 * GIB, 256 * MIB), (4 * GIB, 256 * MIB), (40 * GIB, 2 * GIB)],
)
def test_the_margin_is_a_part_of_the_machine(limit: int, margin: int) -> None:
    assert margin_bytes(limit) == margin


def test_bodies_over_the_limit_lie_on_disk() -> None:
    assert HOST.bodies_bytes(3, 10 * MIB) == 30 * MIB
    assert HOST.bodies_bytes(3, 65 * MIB) == 0


def test_a_temporary_directory_in_memory_counts() -> None:
    memory = replace(HOST, spool_is_memory=True)

    assert memory.bodies_bytes(3, 65 * MIB) == 195 * MIB
    on_disk = replace(HOST, output_share=10)
    in_memory = replace(on_disk, spool_is_memory=True)
    assert in_memory.bytes(1, 10 * MIB, "text/csv") > on_disk.bytes(1, 10 * MIB, "text/csv") + 100 * MIB


@pytest.mark.parametrize("media_type", ["text/csv", "application/jsonlines"])
def test_decoding_does_not_grow_with_the_payload(media_type: str) -> None:
    """Beyond bodies and answers, only requests at once count, as many as have a permit."""
    host = replace(HOST, output_share=0)

    def beside_bodies(concurrent: int, payload: int) -> int:
        return host.bytes(concurrent, payload, media_type) - host.bodies_bytes(concurrent, payload)

    assert beside_bodies(5, 30 * MIB) == beside_bodies(5, 60 * MIB)
    assert beside_bodies(1, 60 * MIB) < beside_bodies(2, 60 * MIB) == beside_bodies(5, 60 * MIB)


def test_an_archive_of_outputs_takes_more_than_one_array() -> None:
    several = replace(HOST, several_outputs=True)

    assert several.bytes(1, MIB, "application/x-npy") > HOST.bytes(1, MIB, "application/x-npy")
    assert several.bytes(1, MIB, "text/csv") == HOST.bytes(1, MIB, "text/csv")


def test_documents_of_objects_take_more_than_those_of_lists() -> None:
    objects = replace(HOST, document=OBJECTS_DOCUMENT)

    assert objects.bytes(1, MIB, "application/json") > HOST.bytes(1, MIB, "application/json")
    assert objects.bytes(1, MIB, "text/csv") == HOST.bytes(1, MIB, "text/csv")


def test_large_documents_are_parsed_one_after_the_other() -> None:
    host = replace(HOST, permits=3, output_share=0)
    one, three = (host.bytes(count, 30 * MIB, "application/json") for count in (1, 3))

    assert one > 30 * MIB * (1 + NUMBERS_DOCUMENT.parsing)
    assert three - one == pytest.approx(2 * 30 * MIB * (1 + NUMBERS_DOCUMENT.held), abs=32 * MIB)


def test_arrays_of_integers_are_held_longer_than_floats() -> None:
    integers = replace(HOST, document=INTEGERS_DOCUMENT)

    assert integers.bytes(2, MIB, "application/json") > HOST.bytes(2, MIB, "application/json")


def test_a_json_document_needs_its_multiple() -> None:
    assert HOST.worst_bytes(1, 6 * MIB) == 126 * MIB
    assert HOST.worst_bytes(5, 6 * MIB) == 2 * 120 * MIB + 30 * MIB


def test_the_peak_is_the_sum() -> None:
    assert MemoryEstimate(1, 20, 300).peak_bytes(4000) == 4321


def test_a_peak_of_loading_stays_the_peak() -> None:
    assert MemoryEstimate(1, 20, 300, past_bytes=9000).peak_bytes(4000) == 9000


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("relief", "expected"), [(0, True), (500, False)])
def test_the_watch_asks_for_relief_before_it_complains(relief: int, expected: bool) -> None:
    free = [40]
    watch = MemoryWatch(lambda: free[0], 1000, lambda: free.append(free.pop() + relief), Clock())

    assert watch.pressed() is expected


def test_the_watch_looks_now_and_then_and_complains_less_often() -> None:
    clock, looks = Clock(), []

    def available() -> int:
        looks.append(clock.now)
        return 40

    watch = MemoryWatch(available, 1000, lambda: None, clock)
    said = []
    for tick in range(50):
        clock.now = tick * 0.5
        said.append(watch.pressed())
    assert [tick for tick, was_said in enumerate(said) if was_said] == list(range(0, 50, 4))
    assert len(looks) == 2 * len(list(filter(None, said)))


def test_the_watch_is_silent_while_there_is_memory() -> None:
    clock = Clock()
    watch = MemoryWatch(lambda: 50, 1000, lambda: pytest.fail("nothing to relieve"), clock)
    for tick in range(10):
        clock.now = tick
        assert not watch.pressed()


def test_half_of_what_a_load_has_left_in_the_heap_is_expected_to_return(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident = [346]
    monkeypatch.setattr("onnx_serve.allocator.release", lambda: resident.append(164))

    assert release_and_settle(lambda: resident[-1]) == 255


def test_strings_of_a_chunk_are_held_in_three_places() -> None:
    texts, payload = replace(HOST, string_share=2), 10 * MIB

    assert texts.bytes(1, payload, "text/csv") - HOST.bytes(1, payload, "text/csv") == 6 * MIB
    assert texts.bytes(1, payload, "application/json") == HOST.bytes(1, payload, "application/json")
