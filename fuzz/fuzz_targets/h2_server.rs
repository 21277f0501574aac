//! `cargo +nightly fuzz run h2_server`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_wire::fuzzing::h2_server(data));
