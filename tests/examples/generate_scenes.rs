//! Writes the bundled data set: `cargo run --release -p tests --example generate_scenes -- data/scenes`

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os()
        .nth(1)
        .ok_or("usage: generate_scenes FOLDER")?;
    let folder = PathBuf::from(folder);
    std::fs::create_dir_all(&folder)?;
    for (name, content) in tests::scenes::files() {
        std::fs::write(folder.join(name), content)?;
    }
    Ok(())
}
