//! Exact match of the last number, for arithmetic word problems.

/// The last number in a text: digits with an optional sign before, commas between and a fraction after.
pub fn last_number(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut found = None;
    let mut at = 0;
    while at < bytes.len() {
        if !is_digit(at) {
            at += 1;
            continue;
        }
        let begin = at;
        let mut has_fraction = false;
        while is_digit(at)
            || (is_digit(at + 1)
                && match bytes.get(at) {
                    Some(b',') => !has_fraction,
                    Some(b'.') => !std::mem::replace(&mut has_fraction, true),
                    _ => false,
                })
        {
            at += 1;
        }
        // `7-3` is a difference, not a negative number.
        let is_negative = begin > 0
            && bytes[begin - 1] == b'-'
            && !(begin > 1 && bytes[begin - 2].is_ascii_alphanumeric());
        let digits = text[begin..at].replace(',', "");
        let value: Option<f64> = digits.parse().ok();
        found = value.map(|value| if is_negative { -value } else { value });
    }
    found
}

/// Whether two texts end in the same number, however it is written; never where the prediction has none.
pub fn same_last_number(predicted: &str, expected: &str) -> bool {
    match (last_number(predicted), last_number(expected)) {
        (Some(predicted), Some(expected)) => predicted.total_cmp(&expected).is_eq(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_people_write_them() {
        for (text, expected) in [
            ("The answer is 42.", Some(42.0)),
            ("3 + 4 = 7", Some(7.0)),
            ("$1,234.50 in all", Some(1234.5)),
            ("it fell to -8 degrees", Some(-8.0)),
            ("10-7", Some(7.0)),
            ("x = -0.25.", Some(-0.25)),
            ("1.2.3", Some(3.0)),
            ("5, 6, 7,", Some(7.0)),
            ("٣ and é", None),
            ("none", None),
        ] {
            assert_eq!(last_number(text), expected, "{text}");
        }
    }

    #[test]
    fn equal_values_match_and_absence_does_not() {
        assert!(same_last_number("so 7.0 apples", "#### 7"));
        assert!(same_last_number("1,000", "1000"));
        assert!(!same_last_number("I do not know", "none"));
        assert!(!same_last_number("7 or 8", "7"));
    }
}
