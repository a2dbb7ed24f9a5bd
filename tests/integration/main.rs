//! Integration tests, one module per promise. One binary, because linking libtorch is slow.

#[path = "../common/fill.rs"]
mod fill;

mod networks;
