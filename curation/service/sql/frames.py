"""The frames between the service and a SQL worker: kind, size, bytes."""

import struct

HEADER = struct.Struct(">cI")  # kind of frame, bytes
READY, RESULT, CHUNK, END, FAILURE = b"o", b"r", b"c", b"e", b"f"
