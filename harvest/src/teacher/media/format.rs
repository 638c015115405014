//! What a picture is, by its content, and whether it may be sent.

use std::io::Cursor;

use image::{ImageFormat, ImageReader};

/// Pixels of the largest picture: 8,192 by 8,192. A small file can announce billions.
const MAX_PIXELS: u64 = 1 << 26;

/// A problem, and what to do about it.
type Problem = (String, &'static str);

const CONVERT: &str = "convert the picture to PNG, JPEG, WebP or GIF";

/// The media type of a picture whose header can be read and whose size is within limits; nothing is decoded.
pub(super) fn check(bytes: &[u8]) -> Result<&'static str, Problem> {
    let (format, media_type) = match image::guess_format(bytes) {
        Ok(format @ ImageFormat::Png) => (format, "image/png"),
        Ok(format @ ImageFormat::Jpeg) => (format, "image/jpeg"),
        Ok(format @ ImageFormat::WebP) => (format, "image/webp"),
        Ok(format @ ImageFormat::Gif) => (format, "image/gif"),
        _ => {
            let problem = "its content is none of PNG, JPEG, WebP and GIF";
            return Err((problem.into(), CONVERT));
        }
    };
    let (width, height) = dimensions(bytes, format)
        .map_err(|error| (format!("its header cannot be read: {error}"), CONVERT))?;
    if width == 0 || height == 0 {
        return Err(("its header says that it has no pixel".into(), CONVERT));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let problem = format!(
            "its header announces {width} by {height} pixels, and {} million is the most",
            MAX_PIXELS / 1_000_000
        );
        return Err((problem, "scale the picture down"));
    }
    Ok(media_type)
}

fn dimensions(bytes: &[u8], format: ImageFormat) -> Result<(u32, u32), String> {
    if format == ImageFormat::Gif {
        // Width and height of the logical screen, u16 each, stand after the six bytes of the signature.
        let [a, b, c, d] = bytes
            .get(6..10)
            .and_then(|screen| <[u8; 4]>::try_from(screen).ok())
            .ok_or("it breaks off")?;
        let side = |low, high| u32::from(u16::from_le_bytes([low, high]));
        return Ok((side(a, b), side(c, d)));
    }
    ImageReader::with_format(Cursor::new(bytes), format)
        .into_dimensions()
        .map_err(|error| error.to_string())
}
