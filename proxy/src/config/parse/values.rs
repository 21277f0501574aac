//! What single values look like. An error is the rest of a sentence that begins with the variable's name.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;

pub(super) fn host_port(text: &str) -> Result<(String, u16), String> {
    let wrong = || "must be host:port".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(wrong)?;
    let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?.to_string(),
        None => dns_name(host).map_err(|_| wrong())?,
    };
    Ok((host, port))
}

/// A DNS name (or an IPv4 address), lower case, without the final dot.
pub(super) fn dns_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) { Ok(name) } else { Err("must be a DNS name".to_owned()) }
}

/// A number with a unit; 0 may be bare.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a duration with a unit: ms, s, m, h or d".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs).ok_or_else(wrong);
    match unit.trim() {
        "" if number == 0 => Ok(Duration::ZERO),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(60 * 60),
        "d" => seconds(24 * 60 * 60),
        _ => Err(wrong()),
    }
}

pub(super) fn socket_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be IP:port".to_owned())
}

pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "must be IP addresses".to_owned())
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "must be true or false".to_owned())
}

pub(super) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "must be a whole number in range".to_owned())
}

pub(super) fn window(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(n) if (65_535..=0x7fff_ffff).contains(&n) => Ok(n),
        _ => Err("must be from 65535 to 2147483647".to_owned()),
    }
}

/// Comma-separated values.
pub(super) fn list<T, C: FromIterator<T>>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<C, String> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(parse).collect()
}

pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    list(text, |s| {
        s.parse::<IpNet>()
            .or_else(|_| s.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| "must be networks such as 10.0.0.0/8".to_owned())
    })
}

/// Ports and ranges, such as `80,8000-8010`.
pub(super) fn ports(text: &str) -> Result<BTreeSet<u16>, String> {
    let wrong = || "must be ports and ranges such as 25,8000-8010".to_owned();
    let mut all = BTreeSet::new();
    for item in text.split(',').map(str::trim).filter(|s| !s.is_empty()) {
        let (low, high) = item.split_once('-').unwrap_or((item, item));
        let (low, high) = (low.parse::<u16>().map_err(|_| wrong())?, high.parse::<u16>().map_err(|_| wrong())?);
        if low == 0 || high < low {
            return Err(wrong());
        }
        all.extend(low..=high);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("150ms"), Ok(Duration::from_millis(150)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "1", "ms", "-1s", "1w", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_may_be_ranges() {
        assert_eq!(ports("25,8000-8002"), Ok([25, 8000, 8001, 8002].into()));
        assert!(ports("0").is_err() && ports("70000").is_err() && ports("a").is_err());
    }
}
