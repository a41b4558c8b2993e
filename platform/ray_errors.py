"""A worker's own error, out of what Ray wraps around it.

Ray's tasks raise the worker's exception inside one of their own; Ray Data and Ray Train put it into
the text of a remote traceback, with advice of theirs after it; a worker that is gone has none.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from echostill.platform import runtime
from echostill.platform.errors import EchostillError, UsageError

LENGTH = 600  # characters of an error that are shown
# A traceback's last line: the error's name, and mostly what it says.
_LINE = re.compile(r"^([\w.]*(?:Error|Exception|Interrupt)\w*)(?:: (.+))?$", re.MULTILINE)
# Of a worker that is gone: how Ray calls it, and what it says where memory was the reason.
_DEAD = {"WorkerCrashedError", "ActorDiedError", "NodeDiedError"}
_MEMORY = re.compile(r"OutOfMemoryError|running low on memory|due to memory pressure|\(OOM\)")
_USED = re.compile(r"was ([\d.]+ ?[KMGT]i?B)(?: used)? ?/ ?([\d.]+ ?[KMGT]i?B)")
LESS = "use fewer workers, a smaller batch, or a machine with more memory."
_WRAPPERS = ("ray.", "UserCodeException", "UserExceptionWithTraceback")


def cause_of(error: BaseException) -> EchostillError:
    """Find the worker's own error in what Ray raised.

    Returns:
        Our own errors as they were raised, a :class:`UsageError` as one; of any other the name and
        what it says, in one sentence: ``ValueError: no such file.`` Where a worker died, Ray's word
        for it.
    """
    found = _found(error)
    return found if isinstance(found, EchostillError) else EchostillError(found)


@contextmanager
def worker_errors(what: str = "", kept: str = "") -> Iterator[None]:
    """Turn what Ray raises for its workers into an error in words.

    Args:
        what: What was being done, to begin the message with.
        kept: What stays of finished work, and how to go on, to end it with.

    Raises:
        UsageError: A worker refused its input or configuration.
        EchostillError: A worker failed or died, or Ray itself died.
    """
    try:
        yield
    except KeyboardInterrupt:
        died = runtime.lost_process()
        if died is None:
            raise
        raise EchostillError(_message(what, runtime.describe_loss(died))) from None
    except Exception as error:
        if not _is_rays(error) and not isinstance(error, SystemError):  # Ray's core raises those
            raise
        found = _found(error)
        if isinstance(found, EchostillError):
            raise type(found)(_message(what, str(found), kept)) from error
        raise EchostillError(_message(what, f"a worker failed: {found}", kept)) from error


def _found(error: BaseException) -> EchostillError | str:
    wrappers: list[BaseException] = []
    own: BaseException | None = error
    while own is not None and _is_rays(own):
        wrappers.append(own)
        own = _inside(own)
        if own in wrappers:
            own = None
    if isinstance(own, EchostillError):
        return _ours(str(own), isinstance(own, UsageError))
    if own is not None:
        return sentence(type(own).__name__, str(own))
    for wrapper in reversed(wrappers):
        lines = [line for line in _LINE.findall(str(wrapper)) if not line[0].startswith(_WRAPPERS)]
        if lines:
            name, text = lines[-1]
            if name.startswith("echostill."):
                return _ours(text, name.endswith(".UsageError"))
            return sentence(name.rpartition(".")[2], text)
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{sentence(type(error).__name__, first)}{_death(wrappers)}"


def _death(wrappers: list[BaseException]) -> str:
    """Say why a worker may have died that left no error: mostly not by anyone's request."""
    names = {kind.__name__ for wrapper in wrappers for kind in type(wrapper).__mro__}
    text = " ".join(str(wrapper) for wrapper in wrappers)
    if "OutOfMemoryError" in names or _MEMORY.search(text):
        used = _USED.search(text)
        how_much = f" ({used[1]} of {used[2]} in use)" if used else ""
        return f" Its machine ran out of memory{how_much}, so Ray ended a worker: {LESS}"
    if names & _DEAD or any(name in text for name in _DEAD):
        return f" A worker that dies so was most often ended for lack of memory: {LESS}"
    return ""


def _message(what: str, *sentences: str) -> str:
    text = " ".join(sentence for sentence in sentences if sentence)
    return f"{what}: {text}" if what else text


def _is_rays(error: BaseException) -> bool:
    """Whether Ray made an exception; those of its tasks are of the worker's class as well."""
    return any(kind.__module__.split(".")[0] == "ray" for kind in type(error).__mro__)


def _inside(error: BaseException) -> BaseException | None:
    """What an exception of Ray's was made for."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        first: BaseException = next(iter(failures.values()))
        return first
    for name in ("controller_failure", "cause", "__cause__"):
        found = getattr(error, name, None)
        if isinstance(found, BaseException):
            return found
    return None


def _ours(text: str, refused: bool) -> EchostillError:
    return UsageError(text) if refused else EchostillError(text)


def sentence(name: str, text: str) -> str:
    """Say an error in one line that ends as a sentence does: ``ValueError: no such file.``"""
    said = " ".join(text.split())
    if len(said) > LENGTH:
        said = f"{said[:LENGTH].rstrip()} ..."
    whole = f"{name}: {said}" if name and said else name or said
    return whole if whole.endswith((".", "!", "?")) else f"{whole}."
