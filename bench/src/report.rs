//! The report: medians over the rounds, ratios to HAProxy in the same round.

use std::fmt::Write as _;

use crate::{
    compare::{CONNECTIONS, Counts, Cpu, MANY_CONNECTIONS, Plan, RATE, Results, Round, Saturation},
    measure::Memory,
    subjects::Subject,
};

/// One of a round's measurements.
type Pick = fn(&Round) -> &Saturation;

/// Writes it.
pub fn render(plan: &Plan, results: &Results) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "\nBoth proxies of a pair share one core; client and server share another. {} round(s) of {} s, medians; a ratio is
the median of the rounds' own ratios. Absolute figures drift with the machine, ratios less.",
        plan.rounds,
        plan.time.as_secs()
    );
    let throughput: [(String, Pick); 3] = [
        (format!("HTTP/1.1 at saturation, {CONNECTIONS} connections"), |round| &round.http),
        ("gRPC-shaped HTTP/2 at saturation, 8 connections with 8 streams".into(), |round| &round.grpc),
        (format!("HTTP/1.1 at saturation, {MANY_CONNECTIONS} connections"), |round| &round.many),
    ];
    for (title, of) in throughput {
        let _ = writeln!(out, "\n{title}");
        let _ = writeln!(
            out,
            "  {:<16} {:>10} {:>12} {:>26} {:>9}",
            "", "requests/s", "of haproxy", "CPU µs/request out + in", "failures"
        );
        for (subject, rounds) in &results.rounds {
            let rate = median(rounds.iter().map(|round| of(round).0.rate));
            let failures: u64 = rounds.iter().map(|round| of(round).0.failures).sum();
            let ratio = ratio(results, rounds, |round| of(round).0.rate);
            let cpu = cpu(rounds, |round| of(round).1);
            let _ = writeln!(out, "  {subject:<16} {rate:>10.0} {ratio:>12} {cpu:>26} {failures:>9}");
        }
    }
    let _ = writeln!(out, "\nHTTP/1.1 at {RATE} requests/s, random arrivals, {CONNECTIONS} connections; milliseconds");
    let _ = writeln!(
        out,
        "  {:<16} {:>8} {:>8} {:>8} {:>30} {:>9}",
        "", "p50", "p99", "p99.9", "CPU µs/request out + in", "failures"
    );
    for (subject, rounds) in &results.rounds {
        let at = |of: fn(&Round) -> u64| median(rounds.iter().map(|round| of(round) as f64 / 1e6));
        let (p50, p99, p999) = (at(|r| r.steady.0.p50), at(|r| r.steady.0.p99), at(|r| r.steady.0.p999));
        let cpu = cpu(rounds, |round| round.steady.1);
        let failures: u64 = rounds.iter().map(|round| round.steady.0.failures).sum();
        let _ = writeln!(out, "  {subject:<16} {p50:>8.2} {p99:>8.2} {p999:>8.2} {cpu:>30} {failures:>9}");
    }
    let _ = writeln!(out, "\nMemory, MB resident (anonymous part), out / in");
    let _ = writeln!(
        out,
        "  {:<16} {:>26} {:>26} {:>26}",
        "",
        "at rest",
        format!("after {CONNECTIONS} connections"),
        format!("peak, {MANY_CONNECTIONS} connections")
    );
    for (subject, rounds) in &results.rounds {
        let memories: Vec<_> = rounds.iter().filter_map(|round| round.memory).collect();
        if memories.is_empty() {
            continue;
        }
        let at = |state: usize| {
            let side = |side: usize| {
                let megabytes =
                    |of: fn(&Memory) -> u64| median(memories.iter().map(|m| of(&m[state][side]) as f64 / 1e6));
                format!("{:.1} ({:.1})", megabytes(|m| m.resident), megabytes(|m| m.anonymous))
            };
            format!("{} / {}", side(0), side(1))
        };
        let _ = writeln!(out, "  {subject:<16} {:>26} {:>26} {:>26}", at(0), at(1), at(2));
    }
    let _ = writeln!(out, "\nCounted per request, HTTP/1.1, {CONNECTIONS} connections, out + in");
    let _ = writeln!(out, "  {:<16} {:>26} {:>26}", "", "system calls", "instructions");
    for (index, Counts { syscalls, instructions }) in &results.counts {
        let Some((subject, _)) = results.rounds.get(*index) else { continue };
        let show = |counts: &Option<[f64; 2]>, digits: usize| match counts {
            Some([outbound, inbound]) => format!("{outbound:.digits$} + {inbound:.digits$}"),
            None => "cannot be counted here".into(),
        };
        let _ = writeln!(out, "  {subject:<16} {:>26} {:>26}", show(syscalls, 2), show(instructions, 0));
    }
    out
}

/// The median of the ratios to HAProxy, round by round.
fn ratio(results: &Results, rounds: &[Round], of: impl Fn(&Round) -> f64) -> String {
    let yardstick = results.rounds.iter().find(|(subject, _)| *subject == Subject::Haproxy);
    let Some((_, yardstick)) = yardstick else { return String::new() };
    format!("{:.2}", median(rounds.iter().zip(yardstick).map(|(round, peer)| of(round) / of(peer))))
}

fn cpu(rounds: &[Round], of: impl Fn(&Round) -> Option<Cpu>) -> String {
    let cpus: Vec<Cpu> = rounds.iter().filter_map(of).collect();
    if cpus.is_empty() {
        return String::new();
    }
    let side = |side: usize| median(cpus.iter().map(|cpu| cpu[side]));
    format!("{:.1} + {:.1}", side(0), side(1))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), values.len() % 2) {
        (Some(upper), 0) => (upper + values[middle - 1]) / 2.0,
        (Some(middle), _) => *middle,
        (None, _) => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Seen;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), 2.5);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn ratios_are_taken_inside_a_round() {
        let round =
            |rate| Round { http: (Seen { rate, requests: 1, failures: 0 }, Some([10.0, 11.0])), ..Round::default() };
        let results = Results {
            rounds: vec![
                (Subject::Haproxy, vec![round(100.0), round(50.0), round(80.0)]),
                (Subject::Weft, vec![round(150.0), round(80.0), round(100.0)]),
            ],
            ..Results::default()
        };
        assert_eq!(ratio(&results, &results.rounds[1].1, |round| round.http.0.rate), "1.50");
        let plan = Plan { rounds: 3, time: std::time::Duration::from_secs(4), subjects: Vec::new(), proxy: None };
        let text = render(&plan, &results);
        assert!(
            text.contains("  weft-proxy pair         100         1.50                10.0 + 11.0         0\n"),
            "{text}"
        );
    }
}
