"""How the threads of this process share Python's interpreter."""

import sys

_SWITCH_S = 0.5e-3


def share_the_interpreter() -> None:
    """Lets threads of Python take turns every half millisecond, where it was less often.

    By default a thread that computes keeps the interpreter for 5 ms from one that a message just woke: a whole round.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
