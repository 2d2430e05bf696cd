//! Reads bytes with the parser that this program is named after.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    assert!(lifeboat::parsers::run(env!("CARGO_BIN_NAME"), bytes).is_some(), "there is no such parser");
});
