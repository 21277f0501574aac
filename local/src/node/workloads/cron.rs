//! Schedules of CronJobs: the five fields of cron, as Kubernetes reads them, in UTC.

use k8s_openapi::jiff::{Timestamp, civil::Date, tz::TimeZone};
use std::str::FromStr;

/// How far ahead a time is looked for: 29 February may be eight years away.
const FARTHEST: i32 = 9 * 366;

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// Which minutes something is to happen in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    minutes: Field,
    hours: Field,
    days: Field,
    months: Field,
    weekdays: Field,
}

/// The values of a field, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// Whether it is `*`, which matters for days: one of two fields that name days is enough.
    any: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|value| self.bits & 1u64.checked_shl(value).unwrap_or(0) != 0)
    }

    /// Reads `*`, `5`, `1-5`, `*/10`, `mon-fri`, and lists of those. The first of `names` means `first`.
    fn parse(text: &str, what: &str, first: u32, last: u32, names: &[&str]) -> Result<Field, String> {
        let wrong = |message: &str| format!("{what} {text:?} {message}");
        let value = |text: &str| {
            let name = names.iter().zip(first..).find(|(name, _)| text.eq_ignore_ascii_case(name));
            let number = name.map(|(_, number)| number).or_else(|| text.parse().ok());
            let number = number.ok_or_else(|| wrong("is no number, range, step or list of those"))?;
            if (first..=last).contains(&number) {
                Ok(number)
            } else {
                Err(wrong(&format!("is not between {first} and {last}")))
            }
        };
        let mut field = Field { bits: 0, any: false };
        for part in text.split(',') {
            let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
            let (from, to) = match range.split_once('-') {
                _ if range == "*" || range == "?" => (first, last),
                Some((from, to)) => (value(from)?, value(to)?),
                // A single value with a step goes on to the end.
                None if step.is_some() => (value(range)?, last),
                None => (value(range)?, value(range)?),
            };
            if from > to {
                return Err(wrong("has a range that ends before it begins"));
            }
            let step = match step.map(str::parse::<u32>) {
                None => 1,
                Some(Ok(step)) if step > 0 => step,
                Some(_) => return Err(wrong("has a step that is no number from 1")),
            };
            field.any |= (range == "*" || range == "?") && step == 1;
            for value in (from..=to).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
                field.bits |= 1 << value;
            }
        }
        Ok(field)
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
            return Err("times are UTC, a schedule cannot name another time zone".into());
        }
        let text = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ if text.starts_with('@') => return Err(format!("{text:?} is no schedule that is known")),
            _ => text,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            let number = fields.len();
            return Err(format!("{text:?} has {number} fields, not five: minute, hour, day, month, day of the week"));
        };
        let schedule = Schedule {
            minutes: Field::parse(minutes, "minute", 0, 59, &[])?,
            hours: Field::parse(hours, "hour", 0, 23, &[])?,
            days: Field::parse(days, "day", 1, 31, &[])?,
            months: Field::parse(months, "month", 1, 12, MONTHS)?,
            weekdays: Field::parse(weekdays, "day of the week", 0, 6, WEEKDAYS)?,
        };
        if schedule.next(Timestamp::UNIX_EPOCH).is_none() {
            return Err(format!("{text:?} never comes"));
        }
        Ok(schedule)
    }
}

impl Schedule {
    /// The first time after this one.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let begin = TimeZone::UTC.to_datetime(after).date();
        let mut date = begin;
        for _ in 0..FARTHEST {
            if self.is_day(date) {
                let found = self.times(date).find(|at| *at > after);
                if found.is_some() {
                    return found;
                }
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The last time that is after one and not after another.
    pub(crate) fn last(&self, after: Timestamp, until: Timestamp) -> Option<Timestamp> {
        let first = TimeZone::UTC.to_datetime(after).date();
        let mut date = TimeZone::UTC.to_datetime(until).date();
        while date >= first {
            if self.is_day(date) {
                let found = self.times(date).rfind(|at| *at > after && *at <= until);
                if found.is_some() {
                    return found;
                }
            }
            date = date.yesterday().ok()?;
        }
        None
    }

    fn is_day(&self, date: Date) -> bool {
        let day = self.days.has(date.day());
        let weekday = self.weekdays.has(date.weekday().to_sunday_zero_offset());
        let right = if self.days.any || self.weekdays.any { day && weekday } else { day || weekday };
        right && self.months.has(date.month())
    }

    /// All times of a day on which it happens.
    fn times(&self, date: Date) -> impl DoubleEndedIterator<Item = Timestamp> + use<> {
        let (hours, minutes) = (self.hours, self.minutes);
        let midnight = TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).unwrap_or(Timestamp::UNIX_EPOCH);
        let hours = (0..24i8).filter(move |hour| hours.has(*hour));
        hours.flat_map(move |hour| {
            (0..60i8)
                .filter(move |minute| minutes.has(*minute))
                .map(move |minute| super::later(midnight, i64::from(hour) * 3600 + i64::from(minute) * 60))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn known_schedules() {
        for (schedule, after, next) in [
            ("* * * * *", "2026-11-30T10:00:00Z", "2026-11-30T10:01:00Z"),
            ("*/15 * * * *", "2026-11-30T10:07:31Z", "2026-11-30T10:15:00Z"),
            ("5/20 * * * *", "2026-11-30T10:26:00Z", "2026-11-30T10:45:00Z"),
            ("0 9-17/4 * * mon-fri", "2026-11-28T09:00:00Z", "2026-11-30T09:00:00Z"),
            ("30 4 1,15 * *", "2026-12-31T23:59:59Z", "2027-01-01T04:30:00Z"),
            // Both kinds of day are named: one of them is enough.
            ("0 0 13 * FRI", "2026-11-28T00:00:00Z", "2026-12-04T00:00:00Z"),
            ("0 0 13 * ?", "2026-11-28T00:00:00Z", "2026-12-13T00:00:00Z"),
            ("0 0 29 feb *", "2097-01-01T00:00:00Z", "2104-02-29T00:00:00Z"),
            ("@hourly", "2026-11-30T10:00:00Z", "2026-11-30T11:00:00Z"),
            ("@daily", "2026-11-30T10:00:00Z", "2026-12-01T00:00:00Z"),
            ("@weekly", "2026-11-30T10:00:00Z", "2026-12-06T00:00:00Z"),
            ("@monthly", "2026-11-30T10:00:00Z", "2026-12-01T00:00:00Z"),
            ("@yearly", "2026-11-30T10:00:00Z", "2027-01-01T00:00:00Z"),
        ] {
            let parsed: Schedule = schedule.parse().unwrap();
            assert_eq!(parsed.next(at(after)), Some(at(next)), "{schedule}");
        }
        let hourly: Schedule = "@hourly".parse().unwrap();
        let last = |after, until| hourly.last(at(after), at(until));
        assert_eq!(last("2026-11-28T10:00:00Z", "2026-11-30T10:59:59Z"), Some(at("2026-11-30T10:00:00Z")));
        assert_eq!(last("2026-11-30T10:00:00Z", "2026-11-30T10:59:59Z"), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (schedule, message) in [
            ("", "has 0 fields"),
            ("* * * *", "has 4 fields"),
            ("60 * * * *", "minute \"60\" is not between 0 and 59"),
            ("* * 0 * *", "day \"0\" is not between 1 and 31"),
            ("* * * * 7", "day of the week \"7\" is not between 0 and 6"),
            ("* * * foo *", "month \"foo\" is no number"),
            ("5-1 * * * *", "ends before it begins"),
            ("*/0 * * * *", "step"),
            ("*/x * * * *", "step"),
            ("1,, * * * *", "is no number"),
            ("-1 * * * *", "is no number"),
            ("0 0 31 2 *", "never comes"),
            ("@reboot", "is no schedule"),
            ("@every 1h", "is no schedule"),
            ("TZ=Europe/Paris * * * * *", "UTC"),
        ] {
            let error = schedule.parse::<Schedule>().unwrap_err();
            assert!(error.contains(message), "{schedule}: {error}");
        }
    }

    fn field(first: u32, last: u32) -> impl Strategy<Value = String> {
        let range = (first..=last, first..=last).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b)));
        let part = prop_oneof![
            3 => Just("*".to_owned()),
            2 => (first..=last).prop_map(|a| a.to_string()),
            1 => range.clone(),
            1 => (range, 1u32..20).prop_map(|(range, step)| format!("{range}/{step}")),
            1 => (1u32..40).prop_map(|step| format!("*/{step}")),
        ];
        proptest::collection::vec(part, 1..3).prop_map(|parts| parts.join(","))
    }

    proptest! {
        /// Nothing is skipped and nothing is added, in either direction, compared with a look at every minute.
        #[test]
        fn every_minute_is_judged_alike(
            minutes in field(0, 59), hours in field(0, 23), weekdays in field(0, 6), begin in 0i64..4_000_000_000,
        ) {
            let schedule: Schedule = format!("{minutes} {hours} * * {weekdays}").parse().unwrap();
            let begin = Timestamp::from_second(begin).unwrap();
            let matches = |at: &Timestamp| {
                let civil = TimeZone::UTC.to_datetime(*at);
                let weekday = civil.date().weekday().to_sunday_zero_offset();
                schedule.minutes.has(civil.minute()) && schedule.hours.has(civil.hour()) && schedule.weekdays.has(weekday)
            };
            let first = begin.as_second().div_euclid(60) + 1;
            let minute = |n: i64| Timestamp::from_second(n * 60).unwrap();
            let expected = (first..).map(minute).find(matches);
            prop_assert_eq!(schedule.next(begin), expected);
            let until = super::super::later(begin, 86_400 * 8);
            let last = (first..=until.as_second() / 60).rev().map(minute).find(matches);
            prop_assert_eq!(schedule.last(begin, until), last);
        }

        /// Whatever is written, it is read or refused.
        #[test]
        fn nothing_panics(text in "[-*/,?@ 0-9a-zA-Z]{0,30}") {
            let _ = text.parse::<Schedule>();
        }
    }
}
