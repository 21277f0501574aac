//! The binary is glue; see the library of this crate.

fn main() {}
