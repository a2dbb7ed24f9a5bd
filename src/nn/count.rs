//! Counts what a pass computes: for benchmarks, and to know what memory it takes.

use std::cell::Cell;
use tch::Tensor;

thread_local! {
    static MULTIPLICATIONS: Cell<u64> = const { Cell::new(0) };
    static VALUES: Cell<u64> = const { Cell::new(0) };
}

/// One layer has given `output_bc`, `[b, output, …]`, by `weight`, `[output, …]`.
pub(super) fn computed(output_bc: &Tensor, weight: &Tensor) {
    let per_output = weight.numel() as u64 / weight.size()[0].max(1) as u64;
    MULTIPLICATIONS.with(|count| count.set(count.get() + output_bc.numel() as u64 * per_output));
    VALUES.with(|count| count.set(count.get() + output_bc.numel() as u64));
}

/// Layers that are not this crate's have given so many values in a pass.
pub fn produced(values: u64) {
    VALUES.with(|count| count.set(count.get() + values));
}

/// What `body` gives, and the multiply-accumulates of the convolutions and linear layers of its forward passes on this thread. A
/// convolution of an up-sampled map counts as what it is equal to, nine per input channel and output value.
pub fn multiplications<T>(body: impl FnOnce() -> T) -> (T, u64) {
    let before = MULTIPLICATIONS.get();
    let value = body();
    (value, MULTIPLICATIONS.get() - before)
}

/// The values that convolutions and linear layers have given in the forward passes of `body` on this thread.
pub fn layer_values(body: impl FnOnce()) -> u64 {
    let before = VALUES.get();
    body();
    VALUES.get() - before
}
