//! Bytes as servers write them in JSON.

use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{DecodeError, Engine as _};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reads base64 with or without padding, in one line or several.
///
/// # Errors
/// What is no base64.
pub(super) fn from_base64(text: &str) -> Result<Vec<u8>, DecodeError> {
    let text = text.as_bytes();
    if !text.iter().any(u8::is_ascii_whitespace) {
        return BASE64.decode(text);
    }
    let written = text.iter().copied();
    let on_one_line: Vec<u8> = written.filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(on_one_line)
}
