//! What a server says about its limits in the headers of a reply.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

/// How much of an allowance is left, and when it is whole again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    /// Requests or tokens that are left.
    pub remaining: u64,
    /// Time until the allowance is whole again, where the server says it.
    pub reset: Option<Duration>,
}

/// The allowances that a reply's headers tell of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RateHints {
    /// Requests.
    pub requests: Option<Bucket>,
    /// Tokens.
    pub tokens: Option<Bucket>,
}

/// Headers of requests: what is left, and when it is whole again. The first pair whose first header can be read counts.
const REQUESTS: [(&str, &str); 4] = [
    (
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ),
    (
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("ratelimit-remaining", "ratelimit-reset"),
];

/// The same for tokens.
const TOKENS: [(&str, &str); 2] = [
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    (
        "anthropic-ratelimit-tokens-remaining",
        "anthropic-ratelimit-tokens-reset",
    ),
];

/// Plain numbers from here on are seconds since 1970, not from now: no limit is reset in thirty years.
const FIRST_UNIX_SECONDS: f64 = 1e9;
/// Plain numbers from here on are milliseconds since 1970.
const FIRST_UNIX_MILLISECONDS: f64 = 1e12;

impl RateHints {
    /// Reads `x-ratelimit-{remaining,reset}-{requests,tokens}`, Anthropic's headers, and plain `ratelimit-*`. What cannot
    /// be read says nothing.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        Self::read_at(headers, SystemTime::now())
    }

    fn read_at(headers: &HeaderMap, now: SystemTime) -> Self {
        let text = |name: &str| Some(headers.get(name)?.to_str().ok()?.trim());
        let bucket = |pairs: &[(&str, &str)]| {
            pairs.iter().find_map(|(remaining, reset)| {
                Some(Bucket {
                    remaining: count(text(remaining)?)?,
                    reset: text(reset).and_then(|reset| time_until(reset, now)),
                })
            })
        };
        Self {
            requests: bucket(&REQUESTS),
            tokens: bucket(&TOKENS),
        }
    }

    /// Time until every allowance that is used up is whole again.
    pub fn pause(&self) -> Option<Duration> {
        [self.requests, self.tokens]
            .into_iter()
            .flatten()
            .filter(|bucket| bucket.remaining == 0)
            .filter_map(|bucket| bucket.reset)
            .max()
    }
}

/// A number that is not negative; a fraction is dropped.
#[expect(clippy::cast_sign_loss, reason = "negative numbers are left out")]
pub(super) fn count(text: &str) -> Option<u64> {
    let number: f64 = text.parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number as u64)
}

/// `6m0s`, `12ms`, `1h2m3.5s`, plain seconds, a time since 1970 in seconds or milliseconds, or RFC 3339. A time that has
/// passed is now.
fn time_until(text: &str, now: SystemTime) -> Option<Duration> {
    let until = |time: SystemTime| time.duration_since(now).unwrap_or(Duration::ZERO);
    let since_1970 = |seconds: f64| {
        let since = Duration::try_from_secs_f64(seconds).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(since).map(until)
    };
    match text.parse::<f64>() {
        Ok(number) if number >= FIRST_UNIX_MILLISECONDS => since_1970(number / 1e3),
        Ok(number) if number >= FIRST_UNIX_SECONDS => since_1970(number),
        Ok(number) => Duration::try_from_secs_f64(number).ok(),
        Err(_) => duration(text).or_else(|| humantime::parse_rfc3339(text).ok().map(until)),
    }
}

/// Numbers, each with its unit, one after the other.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let seconds = match unit {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = next;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT
    const NOW: u64 = 784_111_777;

    fn read(headers: &[(&'static str, &'static str)]) -> RateHints {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        RateHints::read_at(&headers, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is what hints hold")]
    fn bucket(remaining: u64, reset_ms: impl Into<Option<u64>>) -> Option<Bucket> {
        Some(Bucket {
            remaining,
            reset: reset_ms.into().map(Duration::from_millis),
        })
    }

    #[test]
    fn every_form_of_a_reset_is_read() {
        for (text, milliseconds) in [
            ("6m0s", 360_000),
            ("12ms", 12),
            ("1s", 1_000),
            ("1h2m3.5s", 3_723_500),
            ("2d", 172_800_000),
            ("0.5", 500),
            ("59", 59_000),
            ("0", 0),
            ("0s", 0),
            ("1994-11-06T08:49:40Z", 3_000),
            ("1994-11-06T08:49:30Z", 0),
            ("1000000000", 215_888_223_000),
            ("1000000000500", 215_888_223_500),
        ] {
            let hints = read(&[
                ("x-ratelimit-remaining-requests", "7"),
                ("x-ratelimit-reset-requests", text),
            ]);
            assert_eq!(hints.requests, bucket(7, milliseconds), "{text}");
            assert_eq!(hints.tokens, None);
        }
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        for text in [
            "-1",
            "",
            "soon",
            "5x",
            "m5",
            "1..2s",
            "s",
            "NaN",
            "inf",
            "1e300",
            "-6m0s",
            "6m 0s",
            "1994-11-06",
        ] {
            let hints = read(&[
                ("x-ratelimit-remaining-tokens", "7"),
                ("x-ratelimit-reset-tokens", text),
            ]);
            assert_eq!(hints.tokens, bucket(7, None), "{text}");
        }
        for text in ["-1", "", "many", "NaN", "inf"] {
            let hints = read(&[
                ("x-ratelimit-remaining-tokens", text),
                ("x-ratelimit-reset-tokens", "1s"),
            ]);
            assert_eq!(hints, RateHints::default(), "{text}");
        }
    }

    #[test]
    fn every_family_of_headers_is_read() {
        let anthropic = read(&[
            ("anthropic-ratelimit-requests-remaining", "3"),
            ("anthropic-ratelimit-requests-reset", "1994-11-06T08:50:37Z"),
            ("anthropic-ratelimit-tokens-remaining", "0"),
            ("anthropic-ratelimit-tokens-reset", "1994-11-06T08:49:38Z"),
        ]);
        assert_eq!(anthropic.requests, bucket(3, 60_000));
        assert_eq!(anthropic.tokens, bucket(0, 1_000));
        for plain in [
            [("ratelimit-remaining", "9"), ("ratelimit-reset", "4")],
            [("x-ratelimit-remaining", "9"), ("x-ratelimit-reset", "4")],
        ] {
            assert_eq!(read(&plain).requests, bucket(9, 4_000));
        }
        let unreadable_first = read(&[
            ("x-ratelimit-remaining-requests", "-1"),
            ("ratelimit-remaining", "2"),
        ]);
        assert_eq!(unreadable_first.requests, bucket(2, None));
    }

    #[test]
    fn only_an_empty_allowance_pauses() {
        let hints = |requests, tokens| RateHints { requests, tokens };
        assert_eq!(
            hints(bucket(1, 50), bucket(0, 20)).pause(),
            Some(Duration::from_millis(20))
        );
        assert_eq!(
            hints(bucket(0, 50), bucket(0, 20)).pause(),
            Some(Duration::from_millis(50))
        );
        assert_eq!(hints(bucket(0, None), bucket(1, 20)).pause(), None);
    }
}
