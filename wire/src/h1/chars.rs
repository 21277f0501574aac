//! Classes of octets, and the syntax of authorities and targets.

const TOKEN: u8 = 1;
const PATH: u8 = 2;
const QUERY: u8 = 4;
const HOST: u8 = 8;

/// Octets of a path and of a query are those that RFC 3986 allows and those that clients send anyway and every server
/// reads alike (JSON's braces, UTF-8). A space, a control or a fragment is none of them.
const fn class(b: u8) -> u8 {
    let mut class = 0;
    if matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+'
        | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~')
    {
        class |= TOKEN;
    }
    if matches!(b, b'!' | b'"' | b'$'..=b';' | b'=' | b'?'..=b'_' | b'a'..=b'~' | 0x80..=0xff) {
        class |= PATH;
    }
    if matches!(b, b'!' | b'$'..=b';' | b'=' | b'?'..=b'~' | 0x80..=0xff) {
        class |= QUERY;
    }
    if matches!(b, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\''
        | b'(' | b')' | b'*' | b'+' | b';' | b'=')
    {
        class |= HOST;
    }
    class
}

static CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = class(i as u8);
        i += 1;
    }
    table
};

fn is(b: u8, class: u8) -> bool {
    CLASSES[b as usize] & class != 0
}

/// An octet of a method or of a field name.
pub(crate) fn is_token(b: u8) -> bool {
    is(b, TOKEN)
}

/// An octet that may stand anywhere in a path and query.
pub(super) fn is_target(b: u8) -> bool {
    is(b, PATH | QUERY)
}

/// An octet of an authority.
pub(super) fn is_authority(b: u8) -> bool {
    is(b, HOST) || matches!(b, b':' | b'[' | b']')
}

/// One or more token octets.
pub(super) fn token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&b| is(b, TOKEN))
}

/// A path that begins with a slash, and an optional query.
pub(super) fn path_and_query(bytes: &[u8]) -> bool {
    if bytes.first() != Some(&b'/') {
        return false;
    }
    match memchr::memchr(b'?', bytes) {
        None => bytes.iter().all(|&b| is(b, PATH)),
        Some(at) => {
            let (path, query) = bytes.split_at(at);
            path.iter().all(|&b| is(b, PATH)) && query.iter().all(|&b| is(b, QUERY))
        }
    }
}

/// A name or IPv4 address or bracketed IPv6 address, and an optional port. No user information, no percent-encoding.
pub(super) fn authority(bytes: &[u8], port_needed: bool) -> bool {
    let (host_ok, rest) = if bytes.first() == Some(&b'[') {
        match memchr::memchr(b']', bytes) {
            Some(end) => {
                let address = bytes.get(1..end).and_then(|a| std::str::from_utf8(a).ok());
                let rest = bytes.get(end + 1..).unwrap_or_default();
                (address.is_some_and(|a| a.parse::<std::net::Ipv6Addr>().is_ok()), rest)
            }
            None => (false, &[][..]),
        }
    } else {
        let end = memchr::memchr(b':', bytes).unwrap_or(bytes.len());
        let (host, rest) = bytes.split_at(end);
        (!host.is_empty() && host.iter().all(|&b| is(b, HOST)), rest)
    };
    let port_ok = match rest.split_first() {
        None => !port_needed,
        // RFC 3986 allows an empty port; nobody sends one on purpose.
        Some((b':', port)) => {
            (1..=5).contains(&port.len())
                && port.iter().all(u8::is_ascii_digit)
                && port.iter().fold(0u32, |n, &d| n * 10 + u32::from(d - b'0')) <= 65535
        }
        Some(_) => false,
    };
    host_ok && port_ok
}

/// Decimal digits alone, no sign, at most what a signed 64-bit number holds: larger ones overflow somewhere down the line.
pub(super) fn length(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() {
        return None;
    }
    let mut n: u64 = 0;
    for &b in bytes {
        if !b.is_ascii_digit() {
            return None;
        }
        n = n.checked_mul(10)?.checked_add(u64::from(b - b'0'))?;
    }
    (n <= i64::MAX as u64).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities() {
        for good in ["a", "web.ns.svc.cluster.local:80", "10.0.0.1:65535", "[::1]", "[fd00::1]:8080", "a_b", "xn--abc"]
        {
            assert!(authority(good.as_bytes(), false), "{good}");
        }
        for bad in [
            "", ":80", "a:", "a:b", "a:65536", "a:000080", "a b", "u@a", "a/b", "a,b", "[::1", "::1", "[::g]",
            "[::1]x", "a%41", "a\u{e9}",
        ] {
            assert!(!authority(bad.as_bytes(), false), "{bad}");
        }
        assert!(authority(b"a:1", true) && !authority(b"a", true) && !authority(b"[::1]", true));
    }

    #[test]
    fn lengths() {
        assert_eq!(length(b"0"), Some(0));
        assert_eq!(length(b"9223372036854775807"), Some(i64::MAX as u64));
        for bad in ["", "+5", "-1", "5, 5", "5 ", "0x5", "9223372036854775808", "99999999999999999999999"] {
            assert_eq!(length(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn targets() {
        assert!(path_and_query(b"/a/b;c=%20?x={1}|y"));
        for bad in ["", "a", "?x", "/a b", "/a#b", "/a?b#c", "/a\u{7f}", "/<a>", "/a?\""] {
            assert!(!path_and_query(bad.as_bytes()), "{bad}");
        }
    }
}
