"""Decoders that may crash or hang on damaged frames, run in a process of their own.

GDCM is the one free decoder of JPEG lossless and reads JPEG-LS too, but some damaged frames end the
process that it runs in. Here it may: the frame is refused, and the next one gets a new process.
This file is also the program of that process, which imports nothing of ours and ends with its
parent.
"""

import atexit
import json
import os
import select
import struct
import subprocess
import sys
import threading
from typing import IO, Any

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

SECONDS = 60.0  # for a frame; whole ones take well below one
_START = 120.0  # for the process to import its libraries on a busy machine
_LENGTHS = struct.Struct("<IQ")


class DecoderError(Exception):
    """A frame could not be decoded; the text says why."""


class IsolatedDecoder:
    """Decodes frames in a child process, started when first needed and again when it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def decode(
        self, data: bytes, syntax: str, plugin: str, options: dict[str, Any]
    ) -> tuple[np.ndarray, str]:
        """Decode a compressed frame.

        Args:
            data: The frame.
            syntax: UID of the transfer syntax.
            plugin: pydicom's name of the decoder.
            options: What pydicom's ``Decoder.as_array`` wants to know of the frame.

        Returns:
            The values, and their photometric interpretation.

        Raises:
            DecoderError: The frame is damaged, or the decoder crashed or hung on it.
        """
        request = {"syntax": syntax, "plugin": plugin, "options": options}
        with self._lock:
            process = self._started()
            try:
                _send(process.stdin, request, data)
                answer, values = self._answer(process, SECONDS)
            except (OSError, EOFError):
                self._stop()
                raise DecoderError(f"its damage ended the decoder ({plugin})") from None
        if not answer:
            raise DecoderError("its compressed data is damaged")
        array = np.frombuffer(values, answer["type"]).reshape(answer["shape"])
        return array, str(answer["photometric"])

    def close(self) -> None:
        """End the child process."""
        with self._lock:
            self._stop()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            try:
                self._answer(self._process, _START)
            except (OSError, EOFError):
                self._stop()
                raise DecoderError("the decoder's process does not start") from None
        return self._process

    def _answer(
        self, process: "subprocess.Popen[bytes]", seconds: float
    ) -> tuple[dict[str, Any], bytes]:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], seconds)[0]:
            self._stop()
            raise DecoderError(f"the decoder took more than {seconds:.0f} seconds over it")
        return _receive(process.stdout)

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None


def _send(pipe: "IO[bytes] | None", message: dict[str, Any], data: bytes = b"") -> None:
    assert pipe is not None
    text = json.dumps(message).encode()
    pipe.write(_LENGTHS.pack(len(text), len(data)) + text + data)
    pipe.flush()


def _receive(pipe: "IO[bytes]") -> tuple[dict[str, Any], bytes]:
    lengths = pipe.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        raise EOFError
    text, data = _LENGTHS.unpack(lengths)
    message, payload = pipe.read(text), pipe.read(data)
    if len(payload) < data:
        raise EOFError
    return json.loads(message), payload


def _serve() -> None:
    """Answer requests until the pipe closes."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints must not get between the answers
    _send(answers, {})
    while True:
        try:
            request, data = _receive(requests)
        except EOFError:
            return
        try:
            values, properties = get_decoder(request["syntax"]).as_array(
                encapsulate([data]),
                index=0,
                raw=True,
                decoding_plugin=request["plugin"],
                **request["options"],
            )
        except Exception:  # what it says is the library's own language
            _send(answers, {})
            continue
        values = np.ascontiguousarray(values)
        about = {
            "type": values.dtype.str,
            "shape": values.shape,
            "photometric": str(properties["photometric_interpretation"]),
        }
        _send(answers, about, values.tobytes())


if __name__ == "__main__":
    _serve()
