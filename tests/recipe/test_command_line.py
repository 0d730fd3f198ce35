"""How a script ends: one line and a status where the user can act, a traceback where the fault is ours."""

import pytest
import torch

from recipe import plain_errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("--limit 0 must be at least 1"), "error: --limit 0 must be at least 1"),
        (OSError(28, "No space left on device", "a.json"), "error: a.json: No space left on device"),
        (OSError("no number, no file"), "error: no number, no file"),
        (torch.OutOfMemoryError("7 GiB"), "error: out of memory; add --int8 (7 GiB)"),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_the_user_can_act_on(error: BaseException, status: object) -> None:
    with pytest.raises(SystemExit) as caught, plain_errors(out_of_memory="add --int8"):
        raise error
    assert caught.value.code == status


def test_our_own_faults_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), plain_errors():
        raise ZeroDivisionError


def test_success_says_nothing() -> None:
    with plain_errors():
        pass
