//! `cargo +nightly fuzz run client_hello`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_wire::fuzzing::client_hello(data));
