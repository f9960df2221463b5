#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mbcopy_fuzz::run("names", bytes));
