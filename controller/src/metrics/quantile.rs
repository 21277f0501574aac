//! Quantiles of histograms, as Prometheus' `histogram_quantile` finds them: by linear interpolation in a bucket.

use std::collections::BTreeMap;

/// An upper bound of a bucket, in the metric's unit; ordered as numbers are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound(f32);

impl Bound {
    /// A bound; `None` for what is no number.
    pub fn new(bound: f64) -> Option<Bound> {
        (!bound.is_nan()).then_some(Bound(bound as f32))
    }

    /// As a number.
    pub fn get(self) -> f64 {
        self.0.into()
    }
}

impl Eq for Bound {}

impl PartialOrd for Bound {
    fn partial_cmp(&self, other: &Bound) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bound {
    fn cmp(&self, other: &Bound) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Observations by bucket; each is in the first bucket whose bound is not below it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram(BTreeMap<Bound, f64>);

impl Histogram {
    /// Adds observations to a bucket. Adding none makes its bound known, which interpolation needs.
    pub fn add(&mut self, bound: Bound, count: f64) {
        *self.0.entry(bound).or_default() += count.max(0.0);
    }

    /// How many there are.
    pub fn total(&self) -> f64 {
        self.0.values().sum()
    }

    /// The value that a share `q` (0 to 1) of the observations does not exceed; `None` without observations. Values
    /// beyond the last finite bound count as that bound.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total = self.total();
        if total <= 0.0 || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = q * total;
        let (mut below, mut lower) = (0.0, 0.0_f64);
        let mut found = None;
        for (bound, count) in &self.0 {
            let upper = bound.get();
            if *count > 0.0 {
                let value = if upper.is_infinite() {
                    lower
                } else if upper <= 0.0 {
                    upper
                } else {
                    lower + (upper - lower) * ((rank - below) / count).clamp(0.0, 1.0)
                };
                found = Some(value);
                below += count;
                if below >= rank {
                    break;
                }
            }
            if upper.is_finite() {
                lower = upper.max(0.0);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: [f64; 8] = [1.0, 2.0, 5.0, 10.0, 50.0, 100.0, 1000.0, f64::INFINITY];

    fn histogram(counts: &[(f64, f64)]) -> Histogram {
        let mut histogram = Histogram::default();
        for (bound, count) in counts {
            histogram.add(Bound::new(*bound).unwrap(), *count);
        }
        histogram
    }

    /// The definition, from observations one by one: the bucket of the one at the rank, interpolated.
    fn by_definition(counts: &[u32], q: f64) -> f64 {
        let total: u32 = counts.iter().sum();
        let rank = q * f64::from(total);
        let mut cumulative = Vec::new();
        let mut sum = 0.0;
        for count in counts {
            sum += f64::from(*count);
            cumulative.push(sum);
        }
        let at = cumulative.iter().zip(counts).position(|(c, n)| *n > 0 && *c >= rank).unwrap();
        let lower = if at == 0 { 0.0 } else { BOUNDS[at - 1] };
        if BOUNDS[at].is_infinite() {
            return lower;
        }
        let before = if at == 0 { 0.0 } else { cumulative[at - 1] };
        lower + (BOUNDS[at] - lower) * (rank - before) / f64::from(counts[at])
    }

    #[test]
    fn examples() {
        assert_eq!(Histogram::default().quantile(0.5), None);
        assert_eq!(histogram(&[(1.0, 0.0), (2.0, 0.0)]).quantile(0.5), None);
        // Ten between 10 and 20: half of them up to 15.
        assert_eq!(histogram(&[(10.0, 0.0), (20.0, 10.0), (f64::INFINITY, 0.0)]).quantile(0.5), Some(15.0));
        assert_eq!(histogram(&[(10.0, 0.0), (20.0, 1.0), (f64::INFINITY, 9.0)]).quantile(0.99), Some(20.0));
        assert_eq!(histogram(&[(10.0, 4.0)]).quantile(0.25), Some(2.5));
        assert_eq!(histogram(&[(10.0, 4.0)]).quantile(1.5), None);
    }

    proptest! {
        #[test]
        fn as_defined(counts in prop::collection::vec(0u32..50, BOUNDS.len()), q in 0.01f64..=1.0) {
            prop_assume!(counts.iter().any(|c| *c > 0));
            let pairs: Vec<(f64, f64)> = BOUNDS.iter().copied().zip(counts.iter().map(|c| f64::from(*c))).collect();
            let found = histogram(&pairs).quantile(q).unwrap();
            let expected = by_definition(&counts, q);
            prop_assert!((found - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{found} instead of {expected}");
        }

        #[test]
        fn never_falls(counts in prop::collection::vec(0u32..50, BOUNDS.len()), a in 0.0f64..=1.0, b in 0.0f64..=1.0) {
            prop_assume!(counts.iter().any(|c| *c > 0));
            let pairs: Vec<(f64, f64)> = BOUNDS.iter().copied().zip(counts.iter().map(|c| f64::from(*c))).collect();
            let histogram = histogram(&pairs);
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(histogram.quantile(low).unwrap() <= histogram.quantile(high).unwrap() + 1e-9);
        }
    }
}
