//! Faults that are in what is said, not in how.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::schedule::{Fault, LimitHeader};
use super::wire::Outgoing;

/// Bytes of a body that is too large: clients are configured to take 1 MiB.
pub(super) const TOO_LARGE: usize = (1 << 20) + 1;

/// The answer in its place; `None` where the fault is none of these.
pub(super) fn spoil(fault: Fault, good: &Outgoing) -> Option<Outgoing> {
    let error = |status, code: &str, message: &str| {
        Outgoing::json(
            status,
            &json!({"error": {"message": message, "type": code, "code": code}}),
        )
    };
    let with_body = |body: String| Outgoing {
        body,
        ..good.clone()
    };
    Some(match fault {
        Fault::BrokenJson if good.status == 200 => {
            with_body(good.body[..good.body.len() * 2 / 3].to_owned())
        }
        Fault::Html200 => Outgoing::html(200, "Welcome"),
        Fault::Html502 => Outgoing::html(502, "Bad Gateway"),
        Fault::Status500 => error(500, "server_error", "it failed inside"),
        Fault::Limited(form) => limited(form),
        Fault::Unavailable => {
            error(503, "overloaded", "come back later").header("retry-after-ms", "2")
        }
        Fault::Overloaded => {
            error(529, "overloaded_error", "come back later").header("retry-after-ms", "2")
        }
        Fault::WrappedError => Outgoing::json(
            200,
            &json!({"error": {"code": 502, "message": "no upstream"}}),
        ),
        Fault::DuplicateIndex if good.status == 200 => with_body(duplicate(&good.body)?),
        Fault::Redirect => {
            Outgoing::json(307, &json!({})).header("location", "http://elsewhere.example/v1")
        }
        Fault::TooLarge => with_body(format!("{}{}", good.body, " ".repeat(TOO_LARGE))),
        Fault::Unauthorized => error(401, "invalid_api_key", "the key is wrong"),
        Fault::PaymentRequired => error(402, "payment_required", "nothing is left"),
        Fault::InsufficientQuota => error(429, "insufficient_quota", "nothing is left"),
        _ => return None,
    })
}

/// 429 with headers that say when to come back: in a few milliseconds, in one of the forms that servers use.
fn limited(form: LimitHeader) -> Outgoing {
    let body = json!({"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}});
    let answer = Outgoing::json(429, &body);
    match form {
        LimitHeader::Milliseconds => answer.header("retry-after-ms", "3"),
        LimitHeader::Seconds => answer.header("retry-after", "0"),
        LimitHeader::Fraction => answer.header("retry-after", "0.004"),
        LimitHeader::Date => answer.header("retry-after", http_date(SystemTime::now())),
        LimitHeader::Bucket => answer
            .header("x-ratelimit-limit-requests", "60")
            .header("x-ratelimit-remaining-requests", "0")
            .header("x-ratelimit-reset-requests", "12ms"),
        LimitHeader::FullBucket => answer
            .header("retry-after-ms", "2.5")
            .header("x-ratelimit-remaining-requests", "5000")
            .header("x-ratelimit-reset-requests", "6m0s")
            .header("x-ratelimit-remaining-tokens", "4000000")
            .header("x-ratelimit-reset-tokens", "6m0s"),
        LimitHeader::MinusOne => answer
            .header("retry-after-ms", "1")
            .header("retry-after", "-1")
            .header("x-ratelimit-remaining-requests", "-1")
            .header("x-ratelimit-reset-requests", "-1")
            .header("x-ratelimit-remaining-tokens", "-1")
            .header("x-ratelimit-reset-tokens", "-1"),
    }
}

/// A time as HTTP writes it (RFC 9110, section 5.6.7).
fn http_date(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut left) = (1970, days);
    let length = |year: u64| {
        let is_leap =
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        if is_leap { 366 } else { 365 }
    };
    while left >= length(year) {
        left -= length(year);
        year += 1;
    }
    let february = length(year) - 337;
    let mut month = 0;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][days as usize % 7];
    let months = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    format!(
        "{weekday}, {:02} {} {year} {:02}:{:02}:{:02} GMT",
        left + 1,
        months[month],
        of_day / 3_600,
        of_day / 60 % 60,
        of_day % 60
    )
}

/// The items of a list of embeddings, the last one first.
pub(super) fn reorder(body: &mut String) {
    if let Ok(mut list) = serde_json::from_str::<Value>(body)
        && let Some(items) = list.get_mut("data").and_then(Value::as_array_mut)
    {
        items.reverse();
        *body = list.to_string();
    }
}

/// The list with one more item, whose index another one has.
fn duplicate(body: &str) -> Option<String> {
    let mut list: Value = serde_json::from_str(body).ok()?;
    let items = list.get_mut("data")?.as_array_mut()?;
    let again = items.first()?.clone();
    items.push(again);
    Some(list.to_string())
}

/// Puts the head of the request wherever an error can hold it.
pub(super) fn repeat_headers(mut answer: Outgoing, head: &str) -> Outgoing {
    let head = head.replace("\r\n", " ");
    match serde_json::from_str::<Value>(&answer.body) {
        Ok(mut body) => {
            for name in ["message", "code", "type"] {
                if let Some(text) = body.pointer_mut(&format!("/error/{name}")) {
                    *text = format!("{} {head}", text.as_str().unwrap_or_default()).into();
                }
            }
            if let Some(detail) = body.get_mut("detail") {
                *detail = json!([{"input": head}]);
            }
            answer.body = body.to_string();
        }
        Err(_) => answer.body = format!("<p>{head}</p>{}", answer.body),
    }
    for (name, value) in &mut answer.headers {
        if *name == "location" {
            *value = format!("{value}?{}", head.replace(' ', "+"));
        }
    }
    answer.header("x-request", head)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_written_as_http_writes_them() {
        let at = |seconds| http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(at(951_782_400), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(at(1_735_689_599), "Tue, 31 Dec 2024 23:59:59 GMT");
    }
}
