//! Rust side of `observer.cpp`: the batch-norms of a program that is not ours, and how much its layers give.

use super::InputStatistics;
use super::shim::{adopt, check};
use crate::error::Result;
use std::ffi::{c_char, c_void};
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn ssdkd_observer_start(embed: bool, out: *mut *mut c_void) -> *mut c_char;
    fn ssdkd_observer_calls(observer: *mut c_void) -> u64;
    fn ssdkd_observer_call(observer: *mut c_void, index: u64, outputs: *mut *mut C_tensor, trains: *mut bool) -> *mut c_char;
    fn ssdkd_observer_stop(observer: *mut c_void);
    fn ssdkd_counter_start(out: *mut *mut c_void) -> *mut c_char;
    fn ssdkd_counter_values(counter: *mut c_void) -> u64;
    fn ssdkd_counter_stop(counter: *mut c_void);
}

/// A call of `aten::batch_norm` with running statistics.
pub struct BatchNormCall {
    /// Statistics of its input, f32, differentiable as the input is.
    pub statistics: InputStatistics,
    /// Running mean and variance, `[f]` f32.
    pub running: (Tensor, Tensor),
    /// Mean of its input over (h, w), `[b, f]` f32, where it was asked for.
    pub embedding_bf: Option<Tensor>,
    /// Whether it normalises by the batch.
    pub trains: bool,
}

/// Takes the callback away however the pass ends.
struct Callback {
    own: *mut c_void,
    stop: unsafe extern "C" fn(*mut c_void),
}

impl Drop for Callback {
    fn drop(&mut self) {
        // SAFETY: the pointer is the shim's own, given back once to the function that goes with it.
        unsafe { (self.stop)(self.own) }
    }
}

/// Runs `body` and says which batch-norms this thread called in it, in their order; with `embed` what each image came to as well.
///
/// The graph executor's optimisation hides operators from the second run of a program on: whoever runs one here switches it off.
///
/// # Errors
/// libtorch's, which are not expected.
pub fn observe_batch_norms<T>(embed: bool, body: impl FnOnce() -> T) -> Result<(T, Vec<BatchNormCall>)> {
    let mut pointer = std::ptr::null_mut();
    // SAFETY: the output is an observer that is given back by the guard.
    check("observing batch-norms", unsafe { ssdkd_observer_start(embed, &mut pointer) })?;
    let observer = Callback { own: pointer, stop: ssdkd_observer_stop };
    let value = body();
    // SAFETY: the observer is live.
    let count = unsafe { ssdkd_observer_calls(observer.own) };
    let call = |index| {
        let (mut out, mut trains) = ([std::ptr::null_mut(); 5], false);
        // SAFETY: the observer is live; it fills four or five outputs, each adopted once.
        check("observing batch-norms", unsafe { ssdkd_observer_call(observer.own, index, out.as_mut_ptr(), &mut trains) })?;
        let [mean_f, variance_f, running_mean, running_var] = [0, 1, 2, 3].map(|i| adopt(out[i]));
        let (statistics, running) = (InputStatistics { mean_f, variance_f }, (running_mean, running_var));
        Ok(BatchNormCall { statistics, running, embedding_bf: embed.then(|| adopt(out[4])), trains })
    };
    Ok((value, (0..count).map(call).collect::<Result<_>>()?))
}

/// Runs `body` and says how many values the convolutions and the products of matrices gave that this thread computed in it.
///
/// # Errors
/// libtorch's, which are not expected.
pub fn count_layer_values<T>(body: impl FnOnce() -> T) -> Result<(T, u64)> {
    let mut counter = std::ptr::null_mut();
    // SAFETY: the output is a counter that is given back by the guard.
    check("counting values", unsafe { ssdkd_counter_start(&mut counter) })?;
    let counter = Callback { own: counter, stop: ssdkd_counter_stop };
    let value = body();
    // SAFETY: the counter is live.
    Ok((value, unsafe { ssdkd_counter_values(counter.own) }))
}
