//! Texts and images.

use std::collections::BTreeMap;
use std::io::Cursor;

use serde::Serialize;

use super::count;
use super::repeats::{RepeatCounter, Repeats};
use super::spread::{Spread, SpreadSummary};

/// What is known of texts.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct TextStats {
    /// Lengths in Unicode characters.
    pub lengths: Option<SpreadSummary>,
    /// Texts without a character other than white space.
    pub num_empty: u64,
    /// Texts that another row has too.
    pub repeats: Repeats,
}

#[derive(Debug, Default)]
pub(super) struct TextCollector {
    lengths: Spread,
    num_empty: u64,
    repeats: RepeatCounter,
}

impl TextCollector {
    pub(super) fn add(&mut self, text: &str) {
        self.lengths.add(text.chars().count() as f64);
        self.num_empty += u64::from(text.trim().is_empty());
        self.repeats.add(text.as_bytes());
    }

    pub(super) fn finish(self) -> TextStats {
        TextStats {
            lengths: self.lengths.summary(),
            num_empty: self.num_empty,
            repeats: self.repeats.finish(),
        }
    }
}

impl TextStats {
    pub(super) fn warnings(&self) -> Vec<String> {
        match self.num_empty {
            0 => Vec::new(),
            num => vec![format!("{num} texts are empty")],
        }
    }
}

/// What is known of pictures.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ImageStats {
    /// Pictures of each format, by content.
    pub formats: BTreeMap<String, u64>,
    /// Pictures of each size, as `width x height`; beyond 64 sizes the rest is counted as `(others)`.
    pub sizes: BTreeMap<String, u64>,
    /// Encoded sizes in bytes.
    pub num_bytes: Option<SpreadSummary>,
    /// Values whose header is that of no picture this build knows.
    pub num_unreadable: u64,
    /// Pictures that another row has byte by byte.
    pub repeats: Repeats,
}

#[derive(Debug, Default)]
pub(super) struct ImageCollector {
    formats: BTreeMap<String, u64>,
    sizes: BTreeMap<String, u64>,
    num_bytes: Spread,
    num_unreadable: u64,
    repeats: RepeatCounter,
}

impl ImageCollector {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.num_bytes.add(bytes.len() as f64);
        self.repeats.add(bytes);
        match header(bytes) {
            None => self.num_unreadable += 1,
            Some((format, width, height)) => {
                count(&mut self.formats, &format);
                count(&mut self.sizes, &format!("{width} x {height}"));
            }
        }
    }

    pub(super) fn finish(self) -> ImageStats {
        ImageStats {
            formats: self.formats,
            sizes: self.sizes,
            num_bytes: self.num_bytes.summary(),
            num_unreadable: self.num_unreadable,
            repeats: self.repeats.finish(),
        }
    }
}

/// Format, width and height; no pixel is decoded, so no picture can blow up.
fn header(bytes: &[u8]) -> Option<(String, u32, u32)> {
    let reader = image::ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .ok()?;
    let format = format!("{:?}", reader.format()?).to_lowercase();
    let (width, height) = reader.into_dimensions().ok()?;
    Some((format, width, height))
}

impl ImageStats {
    pub(super) fn warnings(&self) -> Vec<String> {
        match self.num_unreadable {
            0 => Vec::new(),
            num => vec![format!("{num} values are no picture that this build reads")],
        }
    }
}
