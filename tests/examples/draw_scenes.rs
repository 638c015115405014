//! Draws every row of a folder of JSONL splits with the `sketch` teacher, for baselines and for looking at:
//! `cargo run --release -p tests --example draw_scenes -- data/scenes OUT [NUM_PICTURES]`
//!
//! Writes `OUT/{split}.f32` (1,024 little-endian f32 values a row, in the order of the rows) and, of the first
//! NUM_PICTURES test rows, the picture as `OUT/test-{row}.png`.

use std::path::PathBuf;

use harvest::sketch;
use tests::scenes::Row;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: draw_scenes DATA OUT [NUM_PICTURES]";
    let data = PathBuf::from(arguments.next().ok_or(usage)?);
    let out = PathBuf::from(arguments.next().ok_or(usage)?);
    let num_pictures: usize = arguments.next().map_or(Ok(0), |number| number.parse())?;
    std::fs::create_dir_all(&out)?;
    for split in ["train", "validation", "test"] {
        let mut features = Vec::new();
        for (index, line) in std::fs::read_to_string(data.join(format!("{split}.jsonl")))?
            .lines()
            .enumerate()
        {
            let row: Row = serde_json::from_str(line)?;
            let picture = sketch::draw(&format!("{} {}", row.premise, row.hypothesis))?;
            features.extend(picture.feature().into_iter().flat_map(f32::to_le_bytes));
            if split == "test" && index < num_pictures {
                std::fs::write(out.join(format!("test-{index}.png")), picture.png())?;
            }
        }
        std::fs::write(out.join(format!("{split}.f32")), features)?;
    }
    Ok(())
}
