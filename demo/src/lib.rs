//! weft-demo
