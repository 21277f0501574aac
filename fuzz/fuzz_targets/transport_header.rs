//! `cargo +nightly fuzz run transport_header`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_wire::fuzzing::transport_header(data));
