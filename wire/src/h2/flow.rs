//! The receive window of a connection or a stream, given back in large steps.

use super::frame::MAX_WINDOW;

/// What to tell the peer: after `octets` more were released, the increment of a WINDOW_UPDATE, or None while that would
/// be less than half of the window. `released` is the sum of what was released and not told yet.
pub(super) fn give_back(released: &mut u32, octets: u32, window: u32) -> Option<u32> {
    *released = released.saturating_add(octets).min(MAX_WINDOW);
    if *released == 0 || *released < window / 2 {
        return None;
    }
    Some(std::mem::take(released))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_come_at_half_windows() {
        let mut released = 0;
        assert_eq!(give_back(&mut released, 49, 100), None);
        assert_eq!(give_back(&mut released, 1, 100), Some(50));
        assert_eq!(give_back(&mut released, 0, 100), None);
        assert_eq!(give_back(&mut released, 0, 1), None);
        assert_eq!(give_back(&mut released, 1, 1), Some(1));
    }
}
