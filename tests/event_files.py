"""TensorBoard event files, records taken apart by hand: 8 bytes of length, 4 of checksum, content, 4 of checksum."""

from __future__ import annotations

import struct


def events(folder):
    """Scalars {tag: [(step, value)]}, pictures {tag: PNG bytes} and steps from which older files are void."""
    from tensorboardX.proto import event_pb2

    scalars, pictures, starts = {}, {}, []
    for file in sorted(folder.glob("events.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                starts.append(event.step)
            for value in event.summary.value:
                if value.HasField("image"):
                    pictures[value.tag] = value.image.encoded_image_string
                else:
                    scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return scalars, pictures, starts
