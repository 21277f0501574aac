//! weft-local
