"""Philox4x32-10 in plain Python (Salmon et al., SC 2011): the statement that the engine's random
numbers are checked against."""

MASK = 0xFFFFFFFF


def philox(key, low, high):
    """Four 32-bit numbers of a 64-bit key and a 128-bit counter (two 64-bit halves)."""
    k0, k1 = key & MASK, key >> 32
    c = [low & MASK, low >> 32, high & MASK, high >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & MASK, (p0 >> 32) ^ c[3] ^ k1, p0 & MASK]
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c


def stream_key(seed, stream):
    """Key of a stream (base/philox.h) of a seed."""
    r = philox(seed, stream, 0x6D646D74)
    return r[0] | r[1] << 32


def uniform(bits):
    """Uniform in [0, 1) with 24 bits."""
    return (bits >> 8) / 2**24
