//! The built-in encoder: the mean of a picture over the cells of a grid.

use std::io::Cursor;
use std::num::NonZeroU32;

use image::{ImageError, ImageReader, Limits, RgbaImage};
use serde_json::{Value, json};

use super::super::http::shorten;
use super::super::{ErrorClass, TeacherError};

/// Pixels along one side of the largest picture that is decoded.
const MAX_SIDE: u32 = 4096;
/// Bytes that decoding may take: what a picture of that size has in 16-bit RGBA.
const MAX_ALLOCATION: u64 = MAX_SIDE as u64 * MAX_SIDE as u64 * 8;
/// Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601).
const LUMA: [f64; 3] = [0.299, 0.587, 0.114];

/// A grid of `side` by `side` cells over the picture.
///
/// # Shapes
/// Feature: `side * side` values of brightness, or `3 * side * side` of red, green and blue in turn, of the cells row by
/// row from the top left. Each is in [0, 1], 0 black and 1 white, the mean of the 8-bit sRGB values over the cell, where
/// pixels that a cell's edge cuts count by the part inside. What is transparent lies over white. For a picture of the
/// built-in teacher and 32 cells a side, that is its feature up to the rounding to 8 bits, at most 1/255.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Grid {
    side: NonZeroU32,
    colour: bool,
}

impl Grid {
    pub(super) fn new(side: NonZeroU32, colour: bool) -> Self {
        Self { side, colour }
    }

    pub(super) fn settings(self) -> Value {
        json!({"kind": "builtin", "grid": self.side, "colour": self.colour})
    }

    pub(super) fn meaning(self) -> String {
        let what = if self.colour {
            "red, green and blue"
        } else {
            "brightness"
        };
        let side = self.side;
        format!("{what} of the generated picture in {side} by {side} cells")
    }

    /// # Errors
    /// Deterministic where the file is no picture that can be decoded within limits.
    pub(super) fn encode(self, file: &[u8]) -> Result<Vec<f32>, TeacherError> {
        let picture = decode(file).map_err(|problem| {
            let problem = shorten(&problem.to_string());
            let problem = format!("the generated picture cannot be decoded: {problem}");
            TeacherError::new(ErrorClass::Deterministic, problem)
                .advise("ask the generator for PNG, JPEG or WebP of at most 4096 by 4096 pixels")
        })?;
        let side = self.side.get();
        let columns = cells(picture.width(), side);
        let mut values = Vec::new();
        for (row_start, row_weights) in cells(picture.height(), side) {
            for (column_start, column_weights) in &columns {
                let mut sum = [0.0; 3];
                for (y, row_weight) in (row_start..).zip(&row_weights) {
                    for (x, column_weight) in (*column_start..).zip(column_weights) {
                        let pixel = over_white(picture.get_pixel(x, y).0);
                        for (sum, value) in sum.iter_mut().zip(pixel) {
                            *sum += value * row_weight * column_weight;
                        }
                    }
                }
                if self.colour {
                    values.extend(sum.map(|value| value as f32));
                } else {
                    let luma: f64 = sum
                        .iter()
                        .zip(LUMA)
                        .map(|(value, weight)| value * weight)
                        .sum();
                    values.push(luma as f32);
                }
            }
        }
        Ok(values)
    }
}

fn decode(file: &[u8]) -> Result<RgbaImage, ImageError> {
    Ok(open(file)?.decode()?.into_rgba8())
}

fn open(file: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, ImageError> {
    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    Ok(reader)
}

/// Whether a file is damaged, so that nobody can decode it: not where it is only too large, or of a format that is not
/// decoded here.
pub(super) async fn is_broken(file: Vec<u8>) -> bool {
    let decoded = tokio::task::spawn_blocking(move || open(&file)?.decode()).await;
    let decoded = decoded.expect("decoding a picture does not panic");
    matches!(
        decoded,
        Err(ImageError::Decoding(_) | ImageError::IoError(_))
    )
}

/// The first pixel of each cell along one side of `num_pixels`, and the weights of the pixels from there, which add up
/// to 1.
fn cells(num_pixels: u32, num_cells: u32) -> Vec<(u32, Vec<f64>)> {
    // Positions in units of 1 / num_cells of a pixel are whole numbers.
    let (pixels, cells) = (u64::from(num_pixels), u64::from(num_cells));
    let cell = |cell: u64| {
        let (start, end) = (cell * pixels, (cell + 1) * pixels);
        let (first, last) = (start / cells, (end - 1) / cells);
        let inside = |pixel: u64| end.min((pixel + 1) * cells) - start.max(pixel * cells);
        let weights = (first..=last).map(|pixel| inside(pixel) as f64 / pixels as f64);
        (first as u32, weights.collect())
    };
    (0..cells).map(cell).collect()
}

/// Red, green and blue in [0, 1] of a pixel that lies over white.
fn over_white([red, green, blue, alpha]: [u8; 4]) -> [f64; 3] {
    let alpha = f64::from(alpha) / 255.0;
    [red, green, blue].map(|value| f64::from(value) / 255.0 * alpha + 1.0 - alpha)
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, Rgba};

    use super::*;
    use crate::sketch;

    fn png(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 4]) -> Vec<u8> {
        let picture = RgbaImage::from_fn(width, height, |x, y| Rgba(pixel(x, y)));
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, ImageFormat::Png).unwrap();
        file.into_inner()
    }

    fn encode(side: u32, colour: bool, file: &[u8]) -> Vec<f32> {
        Grid::new(NonZeroU32::new(side).unwrap(), colour)
            .encode(file)
            .unwrap()
    }

    #[test]
    fn a_picture_of_the_built_in_teacher_has_its_feature() {
        let text = "The big red square is left of the small blue triangle. The square is left of the triangle.";
        let picture = sketch::draw(text).unwrap();
        let (found, expected) = (encode(32, false, &picture.png()), picture.feature());
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= 1.0 / 255.0,
                "{found} {expected}"
            );
        }
        assert!(expected.iter().any(|value| *value > 0.9));
    }

    #[test]
    fn cells_are_means_and_pixels_are_cut_at_their_edges() {
        // Three columns, 0, 255 and 0, in two cells: each has half of the middle one.
        let file = png(3, 1, |x, _| if x == 1 { [255; 4] } else { [0, 0, 0, 255] });
        for value in encode(2, false, &file) {
            assert!((value - 1.0 / 3.0).abs() < 1e-6, "{value}");
        }
        // A picture that is smaller than the grid is repeated.
        assert_eq!(encode(2, false, &png(1, 1, |_, _| [255; 4])), [1.0; 4]);
        let rows = png(2, 2, |_, y| {
            if y == 0 {
                [255, 0, 0, 255]
            } else {
                [0, 0, 0, 0]
            }
        });
        assert_eq!(
            encode(2, true, &rows),
            [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
        );
        let grey = encode(2, false, &rows);
        assert!(
            (grey[0] - 0.299).abs() < 1e-6 && (grey[3] - 1.0).abs() < 1e-6,
            "{grey:?}"
        );
    }

    #[test]
    fn bombs_are_refused_before_they_are_decoded() {
        // A file of few bytes that announces 20,000 by 20,000 pixels.
        let mut bomb = png(1, 1, |_, _| [0; 4]);
        bomb[16..20].copy_from_slice(&20_000_u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&20_000_u32.to_be_bytes());
        let crc = crc32fast::hash(&bomb[12..29]);
        bomb[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = Grid::new(NonZeroU32::MIN, false).encode(&bomb).unwrap_err();
        assert_eq!(error.class, ErrorClass::Deterministic);
        assert!(
            error.message.contains("imit") || error.message.contains("too large"),
            "{error}"
        );
    }
}
