//! When a server wants to be asked again: `retry-after-ms`, then `retry-after`; and whether: `x-should-retry`.

use std::time::{Duration, SystemTime};

use reqwest::header::HeaderMap;

/// The wait that the headers ask for, seen at the time `now`.
///
/// `retry-after-ms` is a number of milliseconds; `retry-after` a number of seconds, which may have a fraction, or an
/// HTTP date (RFC 9110, section 10.2.3). Values that are negative or unreadable say nothing; a date that has passed
/// means at once.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    let number = |text: &str| text.parse::<f64>().ok();
    let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).ok();
    if let Some(wait) = text("retry-after-ms")
        .and_then(number)
        .and_then(|milliseconds| seconds(milliseconds / 1e3))
    {
        return Some(wait);
    }
    let value = text("retry-after")?;
    match number(value) {
        Some(value) => seconds(value),
        None => Some(
            httpdate::parse_http_date(value)
                .ok()?
                .duration_since(now)
                .unwrap_or(Duration::ZERO),
        ),
    }
}

/// What `x-should-retry` says, where it says something.
pub(super) fn should_retry(headers: &HeaderMap) -> Option<bool> {
    match headers.get("x-should-retry")?.to_str().ok()?.trim() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn wait(headers: &[(&'static str, &'static str)]) -> Option<Duration> {
        let headers = headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        // Sun, 06 Nov 1994 08:49:37 GMT
        retry_after(
            &headers,
            SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777),
        )
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(
            wait(&[("retry-after-ms", "12.5")]),
            Some(Duration::from_micros(12_500))
        );
        assert_eq!(wait(&[("retry-after", "2")]), Some(Duration::from_secs(2)));
        assert_eq!(
            wait(&[("retry-after", "0.25")]),
            Some(Duration::from_millis(250))
        );
        assert_eq!(
            wait(&[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")]),
            Some(Duration::from_secs(3))
        );
        assert_eq!(
            wait(&[("retry-after", "Sun, 06 Nov 1994 08:49:30 GMT")]),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn milliseconds_win_and_nonsense_says_nothing() {
        assert_eq!(
            wait(&[("retry-after-ms", "5"), ("retry-after", "9")]),
            Some(Duration::from_millis(5))
        );
        assert_eq!(
            wait(&[("retry-after-ms", "soon"), ("retry-after", "9")]),
            Some(Duration::from_secs(9))
        );
        for value in ["-1", "soon", "", "NaN", "1e300"] {
            assert_eq!(wait(&[("retry-after", value)]), None, "{value}");
        }
        assert_eq!(wait(&[]), None);
    }
}
