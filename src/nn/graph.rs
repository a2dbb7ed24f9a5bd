//! Rust side of `graph.cpp`: a forward pass as a TorchScript module, and its operators for formats of other programs.

use super::shim::{check, raw, ssdkd_free};
use super::state::{Role, Slot, State};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::ffi::{CStr, CString, c_char};
use tch::Tensor;
use torch_sys::C_tensor;

/// A `torch::jit::Module` of the shim's.
type CModule = std::ffi::c_void;

unsafe extern "C" {
    fn ssdkd_trace_begin(
        images: *mut C_tensor,
        keys: *const *const c_char,
        tensors: *const *mut C_tensor,
        trained: *const bool,
        count: usize,
        output: *mut *mut CModule,
    ) -> *mut c_char;
    fn ssdkd_trace_end(module: *mut CModule, output: *mut C_tensor) -> *mut c_char;
    fn ssdkd_module_bytes(module: *mut CModule, bytes: *mut *mut c_char, length: *mut usize) -> *mut c_char;
    fn ssdkd_module_graph(module: *mut CModule, json: *mut *mut c_char) -> *mut c_char;
    fn ssdkd_module_free(module: *mut CModule);
}

/// A forward pass that libtorch has recorded, with the state_dict's tensors as parameters and buffers.
pub struct Traced(*mut CModule);

/// The operators of a forward pass in their order.
#[derive(Debug, Deserialize)]
pub struct Graph {
    /// Each uses values of those before it.
    pub nodes: Vec<Node>,
    /// The value that is returned.
    pub output: String,
}

/// One operator.
#[derive(Debug, Deserialize)]
pub struct Node {
    /// As libtorch names it, for example `aten::relu`.
    pub operator: String,
    /// As libtorch's schema of the operator lists them.
    pub inputs: Vec<Operand>,
    /// The value it gives.
    pub output: String,
}

/// What goes into an operator.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Operand {
    /// Of another operator; `images` is what goes into the network.
    Value {
        /// Its name.
        value: String,
    },
    /// Of the state_dict.
    Entry {
        /// Its key.
        entry: String,
    },
    /// A switch.
    Bool(bool),
    /// A number; a real one without a fraction is here too.
    Int(i64),
    /// A real number.
    Real(f64),
    /// Several.
    List(Vec<Operand>),
    /// Left out.
    Missing(()),
    /// What none of these can say.
    Other {
        /// Its type.
        constant: String,
    },
}

/// Gives a recording up where a pass panics: this thread would record for ever.
struct Recording;

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: no module and no tensor is looked at without an output. An error says that nothing is being recorded any more.
        let _ = check("tracing", unsafe { ssdkd_trace_end(std::ptr::null_mut(), std::ptr::null_mut()) });
    }
}

impl Traced {
    /// Records what `forward` computes of `images_bchw` with a [`State::plain`] state: no number of it may depend on how many images
    /// there are.
    pub fn new(state: &State, images_bchw: &Tensor, forward: impl FnOnce(&Tensor) -> Tensor) -> Result<Self> {
        let entries = state.blueprint().entries();
        let keys = entries.iter().map(|entry| CString::new(entry.key.as_str()));
        let keys = keys.collect::<Result<Vec<_>, _>>().map_err(|e| Error::torch("tracing", &e))?;
        let keys: Vec<*const c_char> = keys.iter().map(|key| key.as_ptr()).collect();
        let tensors: Vec<*mut C_tensor> = (0..entries.len()).map(|i| raw(state.at(Slot(i)))).collect();
        let trained: Vec<bool> = entries.iter().map(|entry| matches!(entry.role, Role::Parameter(_))).collect();
        let mut module = std::ptr::null_mut();
        // SAFETY: three lists of one length, and tensors that live until the recording has ended.
        check("tracing", unsafe {
            ssdkd_trace_begin(raw(images_bchw), keys.as_ptr(), tensors.as_ptr(), trained.as_ptr(), keys.len(), &raw mut module)
        })?;
        let (traced, recording) = (Self(module), Recording);
        let output = tch::no_grad(|| forward(images_bchw));
        std::mem::forget(recording);
        // SAFETY: a live module and a live tensor.
        check("tracing", unsafe { ssdkd_trace_end(traced.0, raw(&output)) })?;
        Ok(traced)
    }

    /// The contents of a TorchScript file.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let (mut bytes, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: the shim gives `length` bytes that are ours; they are copied before they are freed.
        unsafe {
            check("writing TorchScript", ssdkd_module_bytes(self.0, &raw mut bytes, &raw mut length))?;
            let copy = std::slice::from_raw_parts(bytes.cast::<u8>(), length).to_vec();
            ssdkd_free(bytes);
            Ok(copy)
        }
    }

    /// Its operators.
    pub fn graph(&self) -> Result<Graph> {
        let mut json = std::ptr::null_mut();
        // SAFETY: the shim gives a NUL-terminated text that is ours; it is copied before it is freed.
        let text = unsafe {
            check("reading a graph", ssdkd_module_graph(self.0, &raw mut json))?;
            let text = CStr::from_ptr(json).to_string_lossy().into_owned();
            ssdkd_free(json);
            text
        };
        serde_json::from_str(&text).map_err(|e| Error::torch("reading a graph", &e))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // SAFETY: made by the shim, freed once.
        unsafe { ssdkd_module_free(self.0) };
    }
}
