"""Which sequences a batch of moec's default sampling has: each once per epoch, in shuffled order (kernels/shuffle.h)."""

SHUFFLE_DOMAIN = 3  # of kernels/random.h


def philox4x32(counter, key):
    """Four 32-bit words of Philox4x32-10 (Salmon et al., 2011)."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = key & mask, key >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & mask, (a >> 32) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def shuffled(seed, epoch, count, index):
    """Element `index` of the permutation of [0, count) that seed and epoch decide: a Feistel network, walked until the
    result is below count."""
    bits = (count - 1).bit_length()
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    word = lambda round, half: philox4x32((half & 0xFFFFFFFF, half >> 32 | SHUFFLE_DOMAIN << 24, round, epoch), seed)[0]
    high, low = index >> low_bits, index & low_mask
    while True:
        for round in range(4):
            high ^= word(2 * round, low) & high_mask
            low ^= word(2 * round + 1, high) & low_mask
        if (high << low_bits | low) < count:
            return high << low_bits | low


def epoch_starts(micro_batch, batch, seq, tokens, seed):
    """First tokens of the sequences of a micro-batch, numbered from 0, in `tokens` tokens of data."""
    count = (tokens - 1) // seq
    sequences = range(micro_batch * batch, (micro_batch + 1) * batch)
    return [shuffled(seed, sequence // count, count, sequence % count) * seq for sequence in sequences]
