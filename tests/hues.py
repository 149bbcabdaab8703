"""Pictures that only their hue tells apart, and files of channels with 16 bits."""

import struct
import zlib

import numpy as np

# Red, green, blue added to a grey: the luminance stays, also as Pillow rounds it.
REDDISH, GREENISH = (56, -26, -13), (-56, 26, 13)


def texture(rng, size=40):
    """A soft grey texture (size, size) of values 70 to 180."""
    coarse = rng.uniform(70, 180, (6, 6))
    at = np.linspace(0, 4.999, size)
    low, share = at.astype(int), at % 1
    rows = coarse[low] * (1 - share[:, None]) + coarse[low + 1] * share[:, None]
    both = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    return np.rint(both).astype(np.int64)


def tinted(grey, hue):
    """grey (h, w) in a hue of the same luminance: (h, w, 3) uint8."""
    return np.uint8(grey[..., None] + np.array(hue))


def write_png16(path, values):
    """A PNG of values (h, w, 3 or 4) uint16, its lines filtered in each of the five ways."""
    height, width, channels = values.shape
    step, raw = 2 * channels, values.astype(">u2").tobytes()
    above, lines = np.zeros(step * width, np.int64), []
    for y in range(height):
        line = np.frombuffer(raw, np.uint8, step * width, y * step * width).astype(np.int64)
        left, corner = (
            np.concatenate([np.zeros(step, np.int64), v[:-step]]) for v in (line, above)
        )
        near = left + above - corner
        far = [abs(near - v) for v in (left, above, corner)]
        paeth = np.where(
            (far[0] <= far[1]) & (far[0] <= far[2]), left, np.where(far[1] <= far[2], above, corner)
        )
        guess = (0, left, above, (left + above) // 2, paeth)[y % 5]
        lines.append(bytes([y % 5]) + np.uint8((line - guess) & 255).tobytes())
        above = line
    kind = 2 if channels == 3 else 6

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


def write_tiff16(path, values, order="<", planar=False):
    """A TIFF of values (h, w, 3) uint16 without compression; planar: channel after channel."""
    height, width, _ = values.shape
    data = (np.moveaxis(values, -1, 0) if planar else values).astype(f"{order}u2").tobytes()
    plane = len(data) // 3
    strips = [8 + plane * k for k in range(3)] if planar else [8]
    counts = [plane] * 3 if planar else [len(data)]
    more = 8 + len(data)  # where values that do not fit into an entry lie
    bits = struct.pack(f"{order}3H", 16, 16, 16)
    far = bits + struct.pack(f"{order}{len(strips) + len(counts)}I", *strips, *counts)
    at = {"bits": more, "strips": more + 6, "counts": more + 6 + 4 * len(strips)}
    one = not planar
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, at["bits"]), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, len(strips), strips[0] if one else at["strips"]), (277, 3, 1, 3),
        (278, 4, 1, height), (279, 4, len(counts), counts[0] if one else at["counts"]),
        (284, 3, 1, 2 if planar else 1),
    ]  # fmt: skip
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        small = kind == 3 and count == 1
        cell = struct.pack(f"{order}HH", value, 0) if small else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + cell
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, more + len(far))
    path.write_bytes(head + data + far + directory + struct.pack(f"{order}I", 0))
    return path
