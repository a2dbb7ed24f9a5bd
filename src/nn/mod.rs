//! Building blocks of networks: state in flat buffers, layers, optimisers, and what libtorch needs a shim for.

mod count;
mod depthwise;
mod dilated;
pub mod graph;
mod layers;
mod manifest;
mod observer;
mod optim;
pub mod pickle;
mod precision;
mod room;
pub mod shim;
mod state;
mod stateful;
pub mod weights;
mod winograd;

pub use count::{layer_values, multiplications, produced};
pub use dilated::{DilatedConv2d, DilatedShape};
pub use layers::{
    Activation, BatchNorm2d, Conv2d, ConvInit, ConvShape, Embedding, InputStatistics, Linear, Pass, as_kind, max_pool, pooled,
};
pub use manifest::{Manifest, SCRIPT};
pub use observer::{BatchNormCall, count_layer_values, observe_batch_norms};
pub use optim::{Adam, Sgd, cosine};
pub use precision::{compute_in, cpu_has_bf16, kind};
pub use room::room_for;
pub use state::{Blueprint, Entry, Init, Role, Scope, Slot, State};
pub use stateful::{Entries, Stateful};
