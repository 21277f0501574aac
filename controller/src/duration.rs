//! Durations as people write them and as messages carry them.

use std::time::Duration;

/// Protobuf durations; these are constants that fit.
pub const fn millis(millis: i64) -> prost_types::Duration {
    prost_types::Duration { seconds: millis / 1000, nanos: ((millis % 1000) * 1_000_000) as i32 }
}

/// As a message carries it. `None` for what is too long for any purpose.
pub fn of(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

/// A duration of Go's or of the Gateway API's: `1m30s`, `1.5h`, `250ms`.
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let units = [("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, seconds) = units.into_iter().find(|(unit, _)| tail.starts_with(unit))?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail.get(unit.len()..)?;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in
            [("10s", 10_000), ("250ms", 250), ("1m30s", 90_000), ("1.5h", 5_400_000), ("0", 0), ("0s", 0)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(expected)), "{text}");
        }
        for bad in ["", "s", "5", "5d", "-1s", "1s2", "1.2.3s", "9999999999999999999999h"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(millis(1_500), prost_types::Duration { seconds: 1, nanos: 500_000_000 });
    }
}
