//! `cargo +nightly fuzz run detect`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_wire::fuzzing::detect(data));
