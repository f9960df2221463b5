//! Writes the corpus that fuzzing begins with, made of the spools of real servers.
#![allow(dead_code)]

#[path = "../../tests/parsers/seeds.rs"]
mod seeds;

fn main() -> std::io::Result<()> {
    let fuzz = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, files) in seeds::all(&fuzz.join("../tests/fixtures/spools")) {
        let folder = fuzz.join("corpus").join(name);
        std::fs::create_dir_all(&folder)?;
        for bytes in files {
            std::fs::write(folder.join(&blake3::hash(&bytes).to_hex()[..16]), &bytes)?;
        }
    }
    Ok(())
}
