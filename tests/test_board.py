"""The board where workers find their work, without Ray: when a call that they share is done."""

import pytest

from kdfm_ray.jobs.board import Board, Call, Part


@pytest.fixture
def board():
    board = Board()
    board.give(Call(print, (), by_all=True))
    return board


def test_a_call_is_done_when_all_parts_are(board):
    board.note_part(0, Part(1, 2, "b"))
    assert board.count_done() == 0
    board.note_part(0, Part(0, 2, "a"))
    assert board.count_done() == 1
    assert board.outcome() == (None, ["a", "b"])


def test_a_part_that_is_done_twice_is_one_part(board):
    board.note_part(0, Part(1, 2))
    board.note_part(0, Part(1, 2))
    assert board.count_done() == 0


def test_parts_of_another_number_of_workers_do_not_count(board):
    board.note_part(0, Part(1, 2))
    board.note_part(0, Part(0, 3))
    board.note_part(0, Part(2, 3))
    assert board.count_done() == 0
    board.note_part(0, Part(1, 3))
    assert board.count_done() == 1


def test_one_error_is_enough_and_stays_with_its_call(board):
    board.note_part(0, Part(1, 2, error=ValueError("no")))
    assert board.count_done() == 1
    error, _ = board.outcome()
    assert str(error) == "no"
    board.give(Call(print, ()))
    board.note_part(0, Part(0, 2, "late"))
    assert board.count_done() == 1
    board.note_part(1, Part(0, 1, "found"))
    assert board.outcome() == (None, ["found"])


def test_a_worker_that_comes_late_finds_what_is_there_and_then_the_end(board):
    assert isinstance(board.look(0)[0], Call)
    assert board.look(1) == (None, True)
    board.close()
    assert board.look(1) == (None, False)
