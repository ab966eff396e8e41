"""Reading ahead: order, bound and errors do not depend on which thread is done first."""

import threading
import time
import warnings
from contextlib import closing

import pytest
from goca.benchmark.ahead import read_ahead
from goca.benchmark.predictor import recorded_warnings


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_results_come_in_order(ahead):
    def read(number):
        time.sleep(0.01 * (number % 3 == 0))  # every third is late
        return number * number

    assert list(read_ahead(range(20), read, ahead)) == [number * number for number in range(20)]


def test_no_more_are_read_than_asked_for():
    started = []
    with closing(read_ahead(range(100), lambda number: started.append(number) or number, 4)) as found:
        assert next(found) == 0
        time.sleep(0.05)
        assert len(started) <= 5
        assert next(found) == 1
    assert len(started) <= 7  # closed: what had not begun never does
    assert not any(thread.name.startswith("goca-read") for thread in threading.enumerate())


def test_an_error_comes_at_its_turn():
    def read(number):
        if number == 2:
            raise ValueError("two")
        return number

    found = read_ahead(range(5), read, 4)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(found)


def test_warnings_of_another_thread_are_no_notes():
    with pytest.warns(UserWarning, match="theirs"), recorded_warnings() as messages:
        other = threading.Thread(target=lambda: warnings.warn("theirs", UserWarning, stacklevel=1))
        other.start()
        other.join()
        warnings.warn("ours", UserWarning, stacklevel=1)
    assert [str(each) for each in messages] == ["ours"]
