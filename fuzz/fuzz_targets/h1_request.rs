//! `cargo +nightly fuzz run h1_request`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_wire::fuzzing::h1_request(data));
