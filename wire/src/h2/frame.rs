//! Octets of frames (RFC 9113 §4 and §6).

/// What a client sends first.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Octets of a frame's header.
pub(super) const HEADER: usize = 9;

/// The smallest SETTINGS_MAX_FRAME_SIZE, which is also what holds until SETTINGS say otherwise.
pub(super) const MIN_FRAME_SIZE: u32 = 16 * 1024;

/// The largest SETTINGS_MAX_FRAME_SIZE.
pub(super) const MAX_FRAME_SIZE: u32 = (1 << 24) - 1;

/// The window of a connection and of a stream until SETTINGS or WINDOW_UPDATE say otherwise.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;

/// The largest window.
pub(super) const MAX_WINDOW: u32 = (1 << 31) - 1;

/// The largest stream identifier.
pub(super) const MAX_ID: u32 = (1 << 31) - 1;

/// Types of frames.
pub(super) mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(super) mod flag {
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// Names of settings.
pub(super) mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub len: u32,
    pub kind: u8,
    pub flags: u8,
    pub id: u32,
}

impl Head {
    pub(super) fn parse(octets: &[u8; HEADER]) -> Self {
        let [a, b, c, kind, flags, id @ ..] = *octets;
        Self { len: u32::from_be_bytes([0, a, b, c]), kind, flags, id: u32::from_be_bytes(id) & MAX_ID }
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The octets of a frame's header.
pub(super) fn header(len: usize, kind: u8, flags: u8, id: u32) -> [u8; HEADER] {
    let [_, a, b, c] = (len as u32).to_be_bytes();
    let [d, e, f, g] = id.to_be_bytes();
    [a, b, c, kind, flags, d, e, f, g]
}

/// Appends a frame.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    out.extend_from_slice(&header(payload.len(), kind, flags, id));
    out.extend_from_slice(payload);
}

/// Appends a SETTINGS frame.
pub(super) fn put_settings(out: &mut Vec<u8>, settings: &[(u16, u32)]) {
    out.extend_from_slice(&header(settings.len() * 6, kind::SETTINGS, 0, 0));
    for (name, value) in settings {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// A payload without its padding: None when the padding is longer than what it pads.
pub(super) fn unpad<'a>(head: &Head, payload: &'a [u8]) -> Option<&'a [u8]> {
    if !head.has(flag::PADDED) {
        return Some(payload);
    }
    let (&pad, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(pad))?)
}

/// The first four octets of a payload as a number, and what follows.
pub(super) fn number(payload: &[u8]) -> Option<(u32, &[u8])> {
    let (octets, rest) = payload.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*octets), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_round_trip(len in 0u32..1 << 24, kind: u8, flags: u8, id in 0..=MAX_ID) {
            let octets = header(len as usize, kind, flags, id);
            prop_assert_eq!(Head::parse(&octets), Head { len, kind, flags, id });
        }
    }

    #[test]
    fn the_reserved_bit_is_ignored() {
        assert_eq!(Head::parse(&[0, 0, 0, 0, 0, 0x80, 0, 0, 1]).id, 1);
    }

    #[test]
    fn padding_cannot_exceed_the_payload() {
        let padded = Head { len: 0, kind: kind::HEADERS, flags: flag::PADDED, id: 1 };
        assert_eq!(unpad(&padded, &[1, b'a', 0]), Some(&b"a"[..]));
        assert_eq!(unpad(&padded, &[2, b'a', 0]), Some(&b""[..]));
        assert_eq!(unpad(&padded, &[3, b'a', 0]), None);
        assert_eq!(unpad(&padded, &[]), None);
    }
}
