//! Pictures that are readable text, so that a server knows again what it made.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

/// Signature and logical screen of a GIF of one pixel: every byte is ASCII.
const HEAD: &str = "GIF89a\x01\0\x01\0\0\0\0";
const DATA_URI: &str = "data:image/gif;base64,";
const FOLDER: &str = "/pictures/";

/// The file.
fn picture(subject: &str) -> String {
    format!("{HEAD}{subject}")
}

/// What a picture shows where `input` is the data URI of one; `input` itself where it is not.
pub(super) fn subject(input: String) -> String {
    let bytes = input
        .strip_prefix(DATA_URI)
        .and_then(|data| BASE64.decode(data).ok());
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    match text.as_deref().and_then(|text| text.strip_prefix(HEAD)) {
        Some(subject) => subject.to_owned(),
        None => input,
    }
}

/// The reply to a request for a picture: the picture itself, or for every other subject its address below `url`.
pub(super) fn answer(subject: &str, url: &str, tokens: u64) -> Value {
    let made = if subject.len().is_multiple_of(2) {
        json!({"b64_json": BASE64.encode(picture(subject))})
    } else {
        let name = subject.bytes().fold(String::new(), |mut name, byte| {
            let _ = write!(name, "{byte:02x}");
            name
        });
        json!({"url": format!("{url}{FOLDER}{name}")})
    };
    json!({"created": 1, "data": [made], "usage": {"input_tokens": tokens, "output_tokens": 0}})
}

/// The picture at an address of this server.
pub(super) fn at(path: &str) -> Option<String> {
    let (_, name) = path.split_once(FOLDER)?;
    let bytes: Option<Vec<u8>> = name
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    Some(picture(&String::from_utf8(bytes?).ok()?))
}
