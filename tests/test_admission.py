import threading

import pytest

from onnx_serve.admission import Admission
from onnx_serve.errors import Overloaded


def test_beyond_permits_and_waiting_room_nobody_waits() -> None:
    admission = Admission(permits=1, waiting_room=0, timeout_s=None)

    with admission.permit(), pytest.raises(Overloaded, match="1 requests are being worked on and 0 are"):
        admission.permit().__enter__()
    with admission.permit():
        pass


def test_waiting_ends_with_the_time_limit() -> None:
    admission = Admission(permits=1, waiting_room=5, timeout_s=0.01)

    with admission.permit(), pytest.raises(Overloaded, match=r"within 0\.01 s"):
        admission.permit().__enter__()
    assert admission._waiting == 0


def test_who_waits_is_let_in() -> None:
    """A waiter gets the permit that is released, and its place in the waiting room is free again."""
    admission = Admission(permits=1, waiting_room=1, timeout_s=30)
    entered = threading.Event()

    def wait() -> None:
        with admission.permit():
            entered.set()

    with admission.permit():
        waiter = threading.Thread(target=wait)
        waiter.start()
        while admission._waiting == 0:
            assert waiter.is_alive()
        assert not entered.is_set()
        with pytest.raises(Overloaded):
            admission.permit().__enter__()
    waiter.join(30)
    assert entered.is_set()
    assert admission._waiting == 0


def test_a_failure_inside_gives_the_permit_back() -> None:
    admission = Admission(permits=1, waiting_room=0, timeout_s=None)

    for _ in range(3):
        with pytest.raises(ValueError, match="x"), admission.permit():
            raise ValueError("x")


def test_threads_leave_two_for_the_rest() -> None:
    assert Admission(3, 64, None).threads == 69
