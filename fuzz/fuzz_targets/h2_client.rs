//! `cargo +nightly fuzz run h2_client`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_wire::fuzzing::h2_client(data));
