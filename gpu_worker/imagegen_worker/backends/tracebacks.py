"""Release of the frames that an exception keeps alive, and of their local variables."""

import traceback


def release_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of the errors that led to it, and the variables of their frames.

    A traceback refers to its frames, and these to tensors on the device. Functions that still run keep their
    variables.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        each.__traceback__ = None
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
