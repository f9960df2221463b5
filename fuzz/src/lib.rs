//! What the fuzz targets run: the checks of `tests/parsers`, each with its memory
//! counted.

#[path = "../../tests/parsers/checks.rs"]
mod checks;
#[path = "../../tests/parsers/measure.rs"]
mod measure;
#[path = "../../tests/parsers/sealed.rs"]
mod sealed;

#[global_allocator]
static COUNTING: measure::Counting = measure::Counting;

/// Runs the check of a format.
pub fn run(name: &str, bytes: &[u8]) {
    let (name, check) = checks::FORMATS.iter().find(|(n, _)| *n == name).expect("a format");
    measure::within_reason(name, *check, bytes);
}
