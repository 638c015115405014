//! Shapes and light on a canvas of 32 by 32 pixels.
//!
//! Greys are whole sixteenths from 0 (black) to 16 (white), which f16 holds exactly.

use super::layout::{Layout, MAX_CELLS_PER_AXIS};
use super::scene::{Claim, Extent, Scene, Thing, ThingIndex};
use super::words::{Colour, Relation, Shape, Size};

/// Pixels along one side of a picture.
pub const PICTURE_SIDE: usize = 32;
/// Values of a picture's feature: one per pixel.
pub const FEATURE_WIDTH: usize = PICTURE_SIDE * PICTURE_SIDE;

/// Pixels along one side of a grid cell.
const CELL_SIDE: usize = PICTURE_SIDE / MAX_CELLS_PER_AXIS;
const WHITE: u8 = 16;
const BLACK: u8 = 0;
const PAPER: u8 = 4;
/// What the light of a claim adds to the grey of whatever it falls on.
const LIGHT: u8 = 1;

/// A grey picture of 32 by 32 pixels.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// Sixteenths of white, row by row from the top left.
    greys: Vec<u8>,
}

impl Picture {
    /// Draws the things alone.
    pub(super) fn of_scene(scene: &Scene, layout: &Layout) -> Self {
        let canvas = Canvas::new(scene, layout);
        Self::from_pixels(|x, y| match canvas.top_thing(x, y) {
            Some(thing) => tone(scene.things[thing]),
            None => PAPER,
        })
    }

    /// Draws the things, lights the part of the picture where the claim would have its subject, and draws the
    /// subject as a mirror: white where light falls on it and black where none does.
    pub(super) fn of_claim(scene: &Scene, layout: &Layout, claim: Claim) -> Self {
        let canvas = Canvas::new(scene, layout);
        Self::from_pixels(|x, y| {
            let top = canvas.top_thing(x, y);
            let is_lit = match claim.extent {
                Extent::Relative(relation, landmark) => {
                    canvas.is_in_region(relation, landmark, x, y)
                }
                Extent::Coloured(colour) => {
                    top.is_some_and(|thing| scene.things[thing].colour == Some(colour))
                }
                Extent::Sized(size) => {
                    top.is_some_and(|thing| scene.things[thing].size == Some(size))
                }
            };
            match top {
                Some(thing) if thing == claim.subject => {
                    if is_lit {
                        WHITE
                    } else {
                        BLACK
                    }
                }
                Some(thing) => tone(scene.things[thing]) + if is_lit { LIGHT } else { 0 },
                None => PAPER + if is_lit { LIGHT } else { 0 },
            }
        })
    }

    fn from_pixels(grey: impl Fn(usize, usize) -> u8) -> Self {
        let pixels =
            (0..FEATURE_WIDTH).map(|index| grey(index % PICTURE_SIDE, index / PICTURE_SIDE));
        Self {
            greys: pixels.collect(),
        }
    }

    /// The picture as the teacher's feature: 1,024 greys in [0, 1], row by row from the top left. Every value is a
    /// whole number of sixteenths, so f16 holds it exactly.
    pub fn feature(&self) -> Vec<f32> {
        self.greys
            .iter()
            .map(|&grey| f32::from(grey) / f32::from(WHITE))
            .collect()
    }

    /// The picture as a PNG file of 32 by 32 pixels, 8-bit grey.
    pub fn png(&self) -> Vec<u8> {
        let pixels: Vec<u8> = self
            .greys
            .iter()
            .map(|&grey| (u16::from(grey) * 255 / u16::from(WHITE)) as u8)
            .collect();
        let mut file = Vec::new();
        let side = PICTURE_SIDE as u32;
        let mut encoder = png::Encoder::new(&mut file, side, side);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::Eight);
        encoder
            .write_header()
            .and_then(|mut writer| writer.write_image_data(&pixels))
            .expect("1,024 grey pixels encode into memory");
        file
    }
}

impl std::fmt::Debug for Picture {
    /// One line per row of pixels, one letter per grey: `0` black, `4` paper, `g` white.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for row in self.greys.chunks(PICTURE_SIDE) {
            let letters: String = row
                .iter()
                .filter_map(|&grey| char::from_digit(u32::from(grey), 17))
                .collect();
            writeln!(formatter, "{letters}")?;
        }
        Ok(())
    }
}

/// The grey of a thing.
fn tone(thing: Thing) -> u8 {
    match thing.colour {
        Some(Colour::Red) => 6,
        Some(Colour::Green) => 7,
        Some(Colour::Blue) => 8,
        Some(Colour::Yellow) => 9,
        None => 10,
    }
}

/// A thing's square on the canvas.
#[derive(Debug, Clone, Copy)]
struct Frame {
    shape: Shape,
    is_hollow: bool,
    left: usize,
    top: usize,
    side: usize,
}

impl Frame {
    /// Column and row of a pixel within the frame; `None` outside of it.
    fn locate(&self, x: usize, y: usize) -> Option<(usize, usize)> {
        let (column, row) = (x.checked_sub(self.left)?, y.checked_sub(self.top)?);
        (column < self.side && row < self.side).then_some((column, row))
    }

    /// Whether the pixel belongs to the full shape.
    fn covers(&self, x: usize, y: usize) -> bool {
        let Some((column, row)) = self.locate(x, y) else {
            return false;
        };
        let side = self.side;
        // Distances of the pixel's middle from the middle of the frame, in half pixels.
        let (across, down) = (
            (2 * column + 1).abs_diff(side),
            (2 * row + 1).abs_diff(side),
        );
        match self.shape {
            Shape::Square => true,
            Shape::Circle => across * across + down * down <= side * side - 2,
            Shape::Triangle => across <= row + 1,
            Shape::Cross => across == down,
        }
    }

    /// Whether the pixel shows the thing: the full shape, or its rim when the thing holds another.
    fn shows(&self, x: usize, y: usize) -> bool {
        let is_inner = || {
            let left_and_above = x.checked_sub(1).zip(y.checked_sub(1));
            left_and_above.is_some_and(|(left, above)| {
                self.covers(left, y)
                    && self.covers(x + 1, y)
                    && self.covers(x, above)
                    && self.covers(x, y + 1)
            })
        };
        self.covers(x, y) && !(self.is_hollow && is_inner())
    }

    /// Whether the pixel is inside the outline of the shape: within a cross, that is its whole square.
    fn encloses(&self, x: usize, y: usize) -> bool {
        match self.shape {
            Shape::Cross => self.locate(x, y).is_some(),
            Shape::Circle | Shape::Square | Shape::Triangle => self.covers(x, y),
        }
    }
}

/// The frames of all things, indexed as [`Scene::things`], and where the grid begins.
struct Canvas<'layout> {
    layout: &'layout Layout,
    frames: Vec<Frame>,
    left: usize,
    top: usize,
}

impl<'layout> Canvas<'layout> {
    fn new(scene: &Scene, layout: &'layout Layout) -> Self {
        let margin = |num_cells: usize| (PICTURE_SIDE - num_cells * CELL_SIDE) / 2;
        let (left, top) = (margin(layout.num_columns), margin(layout.num_rows));
        let frame = |(index, thing): (ThingIndex, &Thing)| {
            let is_hollow = layout.is_holder(index);
            let side = match (layout.holders[index], thing.size) {
                (Some(_), _) => 3,
                (None, _) if is_hollow => 7,
                (None, Some(Size::Big)) => 7,
                (None, None) => 5,
                (None, Some(Size::Small)) => 4,
            };
            // A held thing and its holder have odd sides, so they share their middle pixel.
            let margin = (CELL_SIDE - side) / 2;
            let cell = layout.cells[index];
            Frame {
                shape: thing.shape,
                is_hollow,
                left: left + cell.column * CELL_SIDE + margin,
                top: top + cell.row * CELL_SIDE + margin,
                side,
            }
        };
        let frames = scene.things.iter().enumerate().map(frame).collect();
        Self {
            layout,
            frames,
            left,
            top,
        }
    }

    /// The thing that the pixel shows; a held thing lies over its holder.
    fn top_thing(&self, x: usize, y: usize) -> Option<ThingIndex> {
        let mut shown = (0..self.frames.len()).filter(|&thing| self.frames[thing].shows(x, y));
        let first = shown.next()?;
        Some(
            shown
                .find(|&thing| self.layout.holders[thing] == Some(first))
                .unwrap_or(first),
        )
    }

    /// Whether the pixel lies where the relation to the landmark puts a thing.
    fn is_in_region(&self, relation: Relation, landmark: ThingIndex, x: usize, y: usize) -> bool {
        let cell = self.layout.cells[landmark];
        let (left, top) = (
            self.left + cell.column * CELL_SIDE,
            self.top + cell.row * CELL_SIDE,
        );
        match relation {
            Relation::LeftOf => x < left,
            Relation::RightOf => x >= left + CELL_SIDE,
            Relation::Above => y < top,
            Relation::Below => y >= top + CELL_SIDE,
            Relation::Inside => self.frames[landmark].encloses(x, y),
        }
    }
}
