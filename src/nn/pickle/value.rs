//! What a pickle can hold.

use super::{PickleError, Result};

/// Plain values a pickle can hold. No class is ever imported, no callable ever called.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// An integer of at most 128 bits that needs more than 64. Still longer ones are [`Value::Opaque`] of `builtins.int`.
    BigInt(i128),
    /// A float.
    Float(f64),
    /// Text; also a Python 2 `str` that is pure ASCII.
    Str(String),
    /// `bytes` or `bytearray`; also a Python 2 `str` that is not ASCII, and text that is not valid UTF-8.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value>),
    /// A tuple or `torch.Size`.
    Tuple(Vec<Value>),
    /// A `dict` or `OrderedDict` in the order of the file. Repeated keys, which Python never writes, stay repeated.
    Dict(Vec<(Value, Value)>),
    /// A `set` or `frozenset`.
    Set(Vec<Value>),
    /// A dense `torch.Tensor` or `Parameter`.
    Tensor(RawTensor),
    /// A `numpy.ndarray` of numbers or booleans.
    Array(RawArray),
    /// Any other object. What would make it is only named, never run.
    Opaque {
        /// `module.name` of the class or function.
        class: String,
        /// The arguments it would be called with.
        args: Vec<Value>,
        /// What the file then attaches: state, list items (each by itself), dict items (as dicts), in the order of the file.
        state: Vec<Value>,
    },
    /// A class, function or constant by its `module.name`, for example `torch.float32`.
    Global(String),
}

impl Value {
    /// The value of the first dict entry under `key`; `None` for other values. Keys may be text or bytes, because Python 2
    /// did not tell them apart.
    pub fn get(&self, key: &str) -> Option<&Value> {
        match self {
            Value::Dict(entries) => entries.iter().find(|(k, _)| k.text() == Some(key)).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text of a `Str`, or of `Bytes` that are UTF-8.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Str(text) => Some(text),
            Value::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// What the value is, in words for a message.
    pub fn describe(&self) -> String {
        let word = match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) | Value::BigInt(_) => "an int",
            Value::Float(_) => "a float",
            Value::Str(_) => "text",
            Value::Bytes(_) => "bytes",
            Value::List(_) => "a list",
            Value::Tuple(_) => "a tuple",
            Value::Dict(_) => "a dict",
            Value::Set(_) => "a set",
            Value::Tensor(_) => "a tensor",
            Value::Array(_) => "a NumPy array",
            Value::Opaque { class, .. } => return format!("an object of `{class}`"),
            Value::Global(name) => return format!("`{name}`"),
        };
        word.to_owned()
    }
}

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// `torch.float64`
    F64,
    /// `torch.float32`
    F32,
    /// `torch.float16`
    F16,
    /// `torch.bfloat16`
    Bf16,
    /// `torch.int64`
    I64,
    /// `torch.int32`
    I32,
    /// `torch.int16`
    I16,
    /// `torch.int8`
    I8,
    /// `torch.uint8`
    U8,
    /// `torch.bool`, one byte each
    Bool,
}

/// Element type, PyTorch's name for it, and the name of its storage class (`torch/storage.py`, `_dtype_to_storage_type_map`).
const DTYPES: [(Dtype, &str, &str); 10] = [
    (Dtype::F64, "float64", "DoubleStorage"),
    (Dtype::F32, "float32", "FloatStorage"),
    (Dtype::F16, "float16", "HalfStorage"),
    (Dtype::Bf16, "bfloat16", "BFloat16Storage"),
    (Dtype::I64, "int64", "LongStorage"),
    (Dtype::I32, "int32", "IntStorage"),
    (Dtype::I16, "int16", "ShortStorage"),
    (Dtype::I8, "int8", "CharStorage"),
    (Dtype::U8, "uint8", "ByteStorage"),
    (Dtype::Bool, "bool", "BoolStorage"),
];

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    /// PyTorch's name, for example `float32`.
    pub fn name(self) -> &'static str {
        DTYPES.iter().find(|entry| entry.0 == self).map_or("", |entry| entry.1)
    }

    /// From a name such as `torch.float32`.
    pub(super) fn from_global(global: &str) -> Result<Dtype> {
        let found = DTYPES.iter().find(|entry| global.strip_prefix("torch.") == Some(entry.1));
        found.map(|entry| entry.0).ok_or_else(|| PickleError::UnsupportedDtype(global.to_owned()))
    }

    /// From a class such as `torch.FloatStorage` or `torch.cuda.FloatStorage`. An untyped storage counts bytes.
    pub(super) fn from_storage(class: &str) -> Result<Dtype> {
        let unknown = || PickleError::UnsupportedDtype(class.to_owned());
        if matches!(class, "torch.storage.UntypedStorage" | "torch.storage._UntypedStorage" | "torch.UntypedStorage") {
            return Ok(Dtype::U8);
        }
        let name = class.strip_prefix("torch.").ok_or_else(unknown)?;
        let name = name.strip_prefix("cuda.").unwrap_or(name);
        DTYPES.iter().find(|entry| entry.2 == name).map(|entry| entry.0).ok_or_else(unknown)
    }
}

/// A dense tensor, free of its storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Size of each dimension; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, contiguous, row-major, little-endian: strides and offset are already applied.
    pub bytes: Vec<u8>,
}

/// A NumPy array of numbers or booleans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawArray {
    /// NumPy's kind letter and element size: `b1`, `i1`, `i2`, `i4`, `i8`, `u1`, `u2`, `u4`, `u8`, `f2`, `f4` or `f8`.
    pub dtype: String,
    /// Size of each dimension.
    pub shape: Vec<usize>,
    /// The elements, contiguous, row-major, little-endian whatever the file had.
    pub bytes: Vec<u8>,
}
