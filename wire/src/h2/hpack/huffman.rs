//! The static Huffman code of RFC 7541, Appendix B.
//!
//! The code is canonical: codes of one length are consecutive and in the order of their octets, and shorter codes come
//! first. So the lengths are all there is to write down; codes and decoding tables are computed from them at compile time.

/// Bits of each octet's code.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, //
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28, //
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, //
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, //
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, //
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, //
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, //
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, //
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, //
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, //
];

/// Bits of the end-of-string code, which is all ones and must not occur.
const LONGEST: usize = 30;

struct Tables {
    /// Code of each octet, right-aligned.
    codes: [u32; 256],
    /// By the next 8 bits: `octet << 8 | length`, 0 where the code is longer than 8 bits.
    fast: [u16; 256],
    /// Octets in the order of their codes.
    sorted: [u8; 256],
    /// By length: the first code beyond those of this length, aligned to the left of 32 bits; 0 where there is none.
    limit: [u32; LONGEST + 1],
    /// By length: what to add to a right-aligned code to get its place in `sorted`, modulo 2^32.
    offset: [u32; LONGEST + 1],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut t =
        Tables { codes: [0; 256], fast: [0; 256], sorted: [0; 256], limit: [0; LONGEST + 1], offset: [0; LONGEST + 1] };
    let (mut length, mut code, mut place) = (1, 0u32, 0u32);
    while length <= LONGEST {
        code <<= 1;
        t.offset[length] = place.wrapping_sub(code);
        let before = place;
        let mut octet = 0;
        while octet < 256 {
            if LENGTHS[octet] as usize == length {
                t.codes[octet] = code;
                t.sorted[place as usize] = octet as u8;
                if length <= 8 {
                    let first = (code << (8 - length)) as usize;
                    let mut i = first;
                    while i < first + (1 << (8 - length)) {
                        t.fast[i] = (octet as u16) << 8 | length as u16;
                        i += 1;
                    }
                }
                code += 1;
                place += 1;
            }
            octet += 1;
        }
        if place != before {
            t.limit[length] = code << (32 - length);
        }
        length += 1;
    }
    t
}

/// Appends the decoded octets of `input` to `out`. False when `input` is not a valid encoding: it contains the
/// end-of-string code, or the padding is longer than 7 bits or not all ones.
#[must_use]
pub fn decode(input: &[u8], out: &mut Vec<u8>) -> bool {
    out.reserve(input.len() * 8 / 5 + 1);
    let mut rest = input;
    // The next `bits` bits, aligned to the left.
    let (mut window, mut bits) = (0u64, 0u32);
    loop {
        if bits < 32 {
            if let Some((chunk, tail)) = rest.split_first_chunk::<4>() {
                window |= u64::from(u32::from_be_bytes(*chunk)) << (32 - bits);
                bits += 32;
                rest = tail;
            } else {
                for &octet in rest {
                    window |= u64::from(octet) << (56 - bits);
                    bits += 8;
                }
                rest = &[];
            }
        }
        // Behind the end there are ones, as if the padding went on.
        let padded = window | u64::MAX.checked_shr(bits).unwrap_or(0);
        let fast = TABLES.fast[(padded >> 56) as usize];
        let (octet, length) = match fast {
            0 => long((padded >> 32) as u32),
            _ => (Some((fast >> 8) as u8), u32::from(fast & 0xff)),
        };
        if length > bits {
            return bits < 8 && padded == u64::MAX;
        }
        let Some(octet) = octet else { return false };
        out.push(octet);
        window <<= length;
        bits -= length;
    }
}

/// A code of more than 8 bits at the left of `window`: the octet, None for end-of-string, and its length.
fn long(window: u32) -> (Option<u8>, u32) {
    for length in 10..=LONGEST {
        if window < TABLES.limit[length] {
            let place = (window >> (32 - length)).wrapping_add(TABLES.offset[length]);
            return (TABLES.sorted.get(place as usize).copied(), length as u32);
        }
    }
    (None, LONGEST as u32)
}

/// Octets that [`encode`] would append.
pub fn encoded_len(input: &[u8]) -> usize {
    input.iter().map(|&b| LENGTHS[b as usize] as usize).sum::<usize>().div_ceil(8)
}

/// Appends the encoding of `input` to `out`.
pub fn encode(input: &[u8], out: &mut Vec<u8>) {
    let (mut window, mut bits) = (0u64, 0u32);
    for &octet in input {
        let length = u32::from(LENGTHS[octet as usize]);
        window = window << length | u64::from(TABLES.codes[octet as usize]);
        bits += length;
        while bits >= 8 {
            bits -= 8;
            out.push((window >> bits) as u8);
        }
    }
    if bits > 0 {
        out.push((window << (8 - bits)) as u8 | 0xff >> bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_rfc() {
        for (octet, code, length) in [
            (b'0', 0x0, 5),
            (b'a', 0x3, 5),
            (b' ', 0x14, 6),
            (b':', 0x5c, 7),
            (b'&', 0xf8, 8),
            (b'!', 0x3f8, 10),
            (b'\\', 0x7fff0, 19),
            (0, 0x1ff8, 13),
            (10, 0x3ffffffc, 30),
            (22, 0x3ffffffe, 30),
            (255, 0x3ffffee, 26),
            (249, 0xffffffe, 28),
        ] {
            assert_eq!((TABLES.codes[octet as usize], LENGTHS[octet as usize]), (code, length), "octet {octet}");
        }
    }

    #[test]
    fn every_octet_survives_in_every_position() {
        for octet in 0..=255u8 {
            for before in 0..8 {
                let mut plain = vec![b'0'; before];
                plain.extend([octet, b'z', octet]);
                let (mut coded, mut back) = (Vec::new(), Vec::new());
                encode(&plain, &mut coded);
                assert_eq!(coded.len(), encoded_len(&plain));
                assert!(decode(&coded, &mut back));
                assert_eq!(back, plain);
            }
        }
    }

    #[test]
    fn bad_padding_and_end_of_string_are_refused() {
        let refused = |bytes: &[u8]| !decode(bytes, &mut Vec::new());
        assert!(refused(&[0xff]), "eight bits of padding");
        assert!(refused(&[0x1f, 0xff]), "a code, then eleven bits of padding");
        assert!(refused(&[0x18]), "padding of zeros"); // 'a' is 00011, then 000
        assert!(decode(&[0x1f], &mut Vec::new()));
        assert!(refused(&[0xff, 0xff, 0xff, 0xfc]), "end of string");
        assert!(refused(&[0xff; 8]));
        assert!(decode(&[], &mut Vec::new()));
    }
}
