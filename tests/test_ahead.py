"""Reading ahead, counting behind: order, bound and errors do not depend on which thread is done first."""

import threading
import time
import warnings
from contextlib import closing

import pytest
from goca.benchmark.ahead import Behind, read_ahead
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


@pytest.mark.parametrize("most", [0, 1, 3])
def test_calls_behind_are_made_in_order_and_all_of_them(most):
    done = []
    with Behind(most) as later:
        for number in range(12):
            later(done.append, number)
    assert done == list(range(12))


def test_the_caller_goes_on_and_waits_only_for_the_bound():
    go_on, done = threading.Event(), []

    def slow(number):
        go_on.wait(10)
        done.append(number)

    with Behind(2) as later:
        later(slow, 0)
        later(slow, 1)
        assert done == []  # neither is finished, and the caller is here
        go_on.set()
        later(slow, 2)
        assert done[0] == 0  # a third had to wait for the first
    assert done == [0, 1, 2]
    assert not any(thread.name.startswith("goca-count") for thread in threading.enumerate())


def fails():
    raise ValueError("in the other thread")


def test_an_error_behind_is_raised_by_a_later_call_or_at_the_end():
    with pytest.raises(ValueError, match="in the other thread"), Behind(1) as later:
        later(fails)
        later(list)
        pytest.fail("the second call should have raised")
    with pytest.raises(ValueError, match="in the other thread"), Behind(1) as later:
        later(fails)


def test_the_callers_own_error_comes_first_and_nothing_is_left_undone():
    done = []
    with pytest.raises(KeyError, match="own"), Behind(3) as later:
        later(done.append, 1)
        later(fails)
        later(done.append, 2)
        raise KeyError("own")
    assert done == [1, 2]
