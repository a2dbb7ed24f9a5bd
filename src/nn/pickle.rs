//! Safe reader of PyTorch weight files (`.pth`, `.pt`) and of plain Python pickles such as CIFAR's batches.
//!
//! A pickle is a program for a small stack machine; Python's own reader imports any class and calls any function the file
//! names. This one has a fixed table of harmless constructors (`Machine::known_call`); every other call becomes a
//! [`Value::Opaque`] that only remembers the name. Nothing from a file is imported, called or executed.
//!
//! Reading goes in three steps, so that a hostile file cannot make us work or allocate out of proportion to its size:
//!
//! 1. `Machine` runs the opcodes and builds `Node`s that refer to each other by number. Shared and recursive references
//!    cost nothing here, and byte strings are borrowed from the file.
//! 2. The tensors' storages are located in the file and checked against its length.
//! 3. `Builder` turns nodes into a tree of [`Value`]s. Here sharing is spelled out, so here a `Budget` counts.
//!
//! Sources of the format facts: CPython `Lib/pickletools.py` (opcodes), PyTorch `torch/serialization.py` (`_save`, `_load`,
//! `_legacy_save`, `_legacy_load`: the archive layouts and persistent ids), PyTorch `torch/_utils.py` (`_rebuild_*`), NumPy
//! `ndarray.__reduce__` and `dtype.__reduce__` (array state).

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::{Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use zip::CompressionMethod;
use zip::read::{ZipArchive, ZipReadOptions};
use zip::result::ZipError;

// ---------------------------------------------------------------------------------------------------------------------
// Errors

/// Why a file could not be read. The texts are for the person who named the file; they leave the path to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// The operating system could not read the file.
    #[error("cannot read the file: {0}")]
    Io(String),

    /// The file stops before its content does.
    #[error("the file is truncated: {0}; download or copy it again")]
    Truncated(String),

    /// Another format than the function reads. Holds what the first bytes look like.
    #[error("this is not the kind of file needed here: it looks like {0}")]
    NotAPickle(String),

    /// A pickle that `torch.save` did not write, or a zip archive without `data.pkl`.
    #[error("not written by torch.save: {0}")]
    NotTorch(String),

    /// An archive of `torch.jit.save`.
    #[error(
        "this is a TorchScript program, not a state_dict; in Python, load it with torch.jit.load and write its weights with \
         torch.save(model.state_dict(), PATH)"
    )]
    TorchScript,

    /// The content contradicts itself or the format.
    #[error("the file is damaged: {0}")]
    Damaged(String),

    /// A pickle feature that cannot occur in weight files, named.
    #[error("the file uses {0}, which is not supported")]
    Unsupported(String),

    /// A tensor of an element type this reader does not have, named as PyTorch names it.
    #[error("the file holds a tensor of type {0}, which is not supported")]
    UnsupportedDtype(String),

    /// An entry of the state dict that is a tensor in PyTorch but no dense one (sparse, quantized, …).
    #[error("tensor `{key}` is made by `{class}`; only dense tensors are supported")]
    UnsupportedTensor {
        /// Key in the state dict.
        key: String,
        /// The callable that would make it.
        class: String,
    },

    /// Written on a big-endian machine.
    #[error("the file was written on a big-endian machine, which is not supported")]
    BigEndian,

    /// A tensor refers to a storage that is not in the file.
    #[error("the file is damaged: a tensor refers to storage `{0}`, which is not in the file")]
    MissingStorage(String),

    /// A tensor reaches beyond the end of its storage.
    #[error("the file is damaged: a tensor of shape {shape:?} reaches beyond the {stored} bytes of its storage `{storage}`")]
    OutOfStorage {
        /// Name of the storage.
        storage: String,
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Bytes the storage has.
        stored: usize,
    },

    /// Reading on would take memory out of proportion to the file.
    #[error("{0} would take far more memory than a file of this size can hold; refused")]
    TooLarge(&'static str),

    /// Nested more than [`MAX_DEPTH`] levels.
    #[error("the content is nested more than {MAX_DEPTH} levels deep; refused")]
    TooDeep,

    /// A whole `nn.Module` was pickled.
    #[error(
        "the file holds a whole pickled model of class `{class}`, which needs the Python code that wrote it; in that code, run \
         torch.save(model.state_dict(), PATH) and use the new file"
    )]
    WholeModule {
        /// `module.name` of the class.
        class: String,
    },

    /// Some other Python object where a state dict was expected.
    #[error(
        "the file holds an object made by calling `{class}`, not a state dict (nothing in the file was run); if you trust the file \
         and have its Python code, run torch.save(model.state_dict(), PATH) there and use the new file"
    )]
    Foreign {
        /// `module.name` of the callable.
        class: String,
    },

    /// No tensors where a state dict was expected.
    #[error("no state dict found: {0}")]
    NoStateDict(String),

    /// Two tensors have the same name.
    #[error("the state dict holds `{0}` twice")]
    DuplicateKey(String),
}

type Result<T, E = PickleError> = std::result::Result<T, E>;

fn damaged<T>(problem: impl Into<String>) -> Result<T> {
    Err(PickleError::Damaged(problem.into()))
}

// ---------------------------------------------------------------------------------------------------------------------
// Values

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
    fn from_global(global: &str) -> Result<Dtype> {
        let found = DTYPES.iter().find(|entry| global.strip_prefix("torch.") == Some(entry.1));
        found.map(|entry| entry.0).ok_or_else(|| PickleError::UnsupportedDtype(global.to_owned()))
    }

    /// From a class such as `torch.FloatStorage` or `torch.cuda.FloatStorage`. An untyped storage counts bytes.
    fn from_storage(class: &str) -> Result<Dtype> {
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

// ---------------------------------------------------------------------------------------------------------------------
// Limits

/// Deepest nesting of a [`Value`]. Whole models come to some 100 levels, state dicts to about 5.
pub const MAX_DEPTH: usize = 256;

/// Most nodes plus values of one file. CIFAR-100 needs some 400,000.
const MAX_VALUES: usize = 8 << 20;

/// Most dimensions of one tensor or array, as in NumPy 2.
const MAX_DIMS: usize = 64;

/// Longest `module.name`.
const MAX_NAME: usize = 1024;

/// What reading one file may still take. Opcodes of a few bytes can ask for large things again and again (a reference to a
/// long string, a tensor of one element expanded to millions), so every copy is paid from here before it is made.
struct Budget {
    bytes: usize,
    values: usize,
}

impl Budget {
    /// Eight times the file is ample for tied weights and views; the constant lets small files have expanded tensors.
    fn for_file(length: usize) -> Budget {
        Budget { bytes: length.saturating_mul(8).saturating_add(16 << 20), values: MAX_VALUES }
    }

    fn pay_bytes(&mut self, count: usize, what: &'static str) -> Result<()> {
        self.bytes = self.bytes.checked_sub(count).ok_or(PickleError::TooLarge(what))?;
        Ok(())
    }

    fn pay_values(&mut self, count: usize) -> Result<()> {
        self.values = self.values.checked_sub(count).ok_or(PickleError::TooLarge("so many values"))?;
        Ok(())
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Nodes: what the opcodes build

/// Number of a node in its [`Pickled::nodes`].
type Id = u32;

/// A value under construction. Other nodes are referred to by number because pickles share and nest them freely, even in
/// circles. `'a` is the pickle's own bytes.
enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    BigInt(Box<i128>),
    Float(f64),
    Str(Cow<'a, str>),
    Bytes(Cow<'a, [u8]>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Set(Vec<Id>),
    Global(Rc<str>),
    Opaque(Box<Object>),
    Storage(Box<Storage>),
    Tensor(Box<TensorPlan>),
    NumpyDtype(Box<NumpyDtype>),
    /// An ndarray; `None` between its creation and its BUILD.
    Array(Option<Box<ArrayPlan>>),
}

/// An object of a class we do not know.
struct Object {
    class: Rc<str>,
    /// A tuple. Kept by number, not copied: one tuple can serve many calls.
    args: Id,
    state: Vec<Id>,
}

/// A persistent id: the tensor data it stands for is elsewhere in the file.
struct Storage {
    class: Rc<str>,
    key: Rc<str>,
    /// Elements of the whole storage.
    count: usize,
    /// First element and number of elements, if this is a view of it (files before PyTorch 0.4).
    view: Option<(usize, usize)>,
}

/// Arguments of `torch._utils._rebuild_tensor*`; sizes in elements.
struct TensorPlan {
    storage: Id,
    /// Set by `_rebuild_tensor_v3`, whose storage has no type.
    dtype: Option<Rc<str>>,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

struct NumpyDtype {
    /// Kind letter and size, without a byte-order prefix.
    name: String,
    big_endian: bool,
}

struct ArrayPlan {
    dtype: Id,
    shape: Vec<usize>,
    fortran: bool,
    data: Id,
}

/// A pickle that was run to its end.
struct Pickled<'a> {
    nodes: Vec<Node<'a>>,
    root: Id,
    /// Position after the pickle; the old PyTorch format has several in a row.
    end: usize,
}

impl<'a> Pickled<'a> {
    /// `Machine::push` gives out only numbers of nodes, so the fallback is never used; it saves a panic path.
    fn node(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    fn root_int(&self) -> Option<i128> {
        match self.node(self.root) {
            Node::Int(value) => Some(i128::from(*value)),
            Node::BigInt(value) => Some(**value),
            _ => None,
        }
    }

    fn storages(&self) -> impl Iterator<Item = &Storage> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(&**storage),
            _ => None,
        })
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The stack machine

/// Opcodes of protocols 0 to 5, named as in `Lib/pickletools.py`.
mod op {
    pub const MARK: u8 = b'(';
    pub const STOP: u8 = b'.';
    pub const POP: u8 = b'0';
    pub const POP_MARK: u8 = b'1';
    pub const DUP: u8 = b'2';
    pub const FLOAT: u8 = b'F';
    pub const INT: u8 = b'I';
    pub const BININT: u8 = b'J';
    pub const BININT1: u8 = b'K';
    pub const LONG: u8 = b'L';
    pub const BININT2: u8 = b'M';
    pub const NONE: u8 = b'N';
    pub const PERSID: u8 = b'P';
    pub const BINPERSID: u8 = b'Q';
    pub const REDUCE: u8 = b'R';
    pub const STRING: u8 = b'S';
    pub const BINSTRING: u8 = b'T';
    pub const SHORT_BINSTRING: u8 = b'U';
    pub const UNICODE: u8 = b'V';
    pub const BINUNICODE: u8 = b'X';
    pub const APPEND: u8 = b'a';
    pub const BUILD: u8 = b'b';
    pub const GLOBAL: u8 = b'c';
    pub const DICT: u8 = b'd';
    pub const EMPTY_DICT: u8 = b'}';
    pub const APPENDS: u8 = b'e';
    pub const GET: u8 = b'g';
    pub const BINGET: u8 = b'h';
    pub const INST: u8 = b'i';
    pub const LONG_BINGET: u8 = b'j';
    pub const LIST: u8 = b'l';
    pub const EMPTY_LIST: u8 = b']';
    pub const OBJ: u8 = b'o';
    pub const PUT: u8 = b'p';
    pub const BINPUT: u8 = b'q';
    pub const LONG_BINPUT: u8 = b'r';
    pub const SETITEM: u8 = b's';
    pub const TUPLE: u8 = b't';
    pub const EMPTY_TUPLE: u8 = b')';
    pub const SETITEMS: u8 = b'u';
    pub const BINFLOAT: u8 = b'G';
    pub const BINBYTES: u8 = b'B';
    pub const SHORT_BINBYTES: u8 = b'C';
    pub const PROTO: u8 = 0x80;
    pub const NEWOBJ: u8 = 0x81;
    pub const EXT1: u8 = 0x82;
    pub const EXT2: u8 = 0x83;
    pub const EXT4: u8 = 0x84;
    pub const TUPLE1: u8 = 0x85;
    pub const TUPLE2: u8 = 0x86;
    pub const TUPLE3: u8 = 0x87;
    pub const NEWTRUE: u8 = 0x88;
    pub const NEWFALSE: u8 = 0x89;
    pub const LONG1: u8 = 0x8a;
    pub const LONG4: u8 = 0x8b;
    pub const SHORT_BINUNICODE: u8 = 0x8c;
    pub const BINUNICODE8: u8 = 0x8d;
    pub const BINBYTES8: u8 = 0x8e;
    pub const EMPTY_SET: u8 = 0x8f;
    pub const ADDITEMS: u8 = 0x90;
    pub const FROZENSET: u8 = 0x91;
    pub const NEWOBJ_EX: u8 = 0x92;
    pub const STACK_GLOBAL: u8 = 0x93;
    pub const MEMOIZE: u8 = 0x94;
    pub const FRAME: u8 = 0x95;
    pub const BYTEARRAY8: u8 = 0x96;
    pub const NEXT_BUFFER: u8 = 0x97;
    pub const READONLY_BUFFER: u8 = 0x98;
}

/// Runs one pickle. Each opcode takes at least one byte of the file and adds at most three nodes.
struct Machine<'a, 'b> {
    bytes: &'a [u8],
    at: usize,
    budget: &'b mut Budget,
    nodes: Vec<Node<'a>>,
    stack: Vec<Id>,
    /// Stack heights at the MARKs; the stack is never popped below the last one.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
}

/// Runs the pickle that starts at byte `start`.
///
/// # Errors
///
/// Truncated or contradictory opcodes, opcodes that only work with help from outside the file, and [`Budget`] overruns.
fn unpickle<'a>(bytes: &'a [u8], start: usize, budget: &mut Budget) -> Result<Pickled<'a>> {
    let mut machine = Machine { bytes, at: start, budget, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        let code = machine.byte()?;
        if code == op::STOP {
            let root = machine.pop()?;
            return Ok(Pickled { nodes: machine.nodes, root, end: machine.at });
        }
        machine.step(code)?;
    }
}

impl<'a> Machine<'a, '_> {
    /// Sends each opcode to the group it belongs to.
    fn step(&mut self, code: u8) -> Result<()> {
        use op::*;
        match code {
            PROTO => self.protocol(),
            // Frames only tell a stream reader how much to buffer. They are checked because a bad one means a cut file.
            FRAME => {
                let length = self.length(8)?;
                self.peek(length).map(|_| ())
            }
            NONE | NEWTRUE | NEWFALSE | INT | BININT | BININT1 | BININT2 | LONG | LONG1 | LONG4 | FLOAT | BINFLOAT => self.number(code),
            STRING | BINSTRING | SHORT_BINSTRING | UNICODE | BINUNICODE | SHORT_BINUNICODE | BINUNICODE8 | BINBYTES | SHORT_BINBYTES
            | BINBYTES8 | BYTEARRAY8 => self.string(code),
            MARK | POP | POP_MARK | DUP | GET | BINGET | LONG_BINGET | PUT | BINPUT | LONG_BINPUT | MEMOIZE => self.stack_or_memo(code),
            EMPTY_LIST | LIST | EMPTY_TUPLE | TUPLE | TUPLE1 | TUPLE2 | TUPLE3 | EMPTY_DICT | DICT | EMPTY_SET | FROZENSET => {
                self.container(code)
            }
            APPEND | APPENDS | ADDITEMS | SETITEM | SETITEMS => self.fill(code),
            GLOBAL | STACK_GLOBAL | REDUCE | NEWOBJ | NEWOBJ_EX | INST | OBJ | BUILD | PERSID | BINPERSID => self.object(code),
            EXT1 | EXT2 | EXT4 => Err(PickleError::Unsupported(format!("pickle opcode EXT ({code:#04x}, extension registry)"))),
            NEXT_BUFFER => Err(PickleError::Unsupported("pickle opcode NEXT_BUFFER (out-of-band data)".into())),
            READONLY_BUFFER => Err(PickleError::Unsupported("pickle opcode READONLY_BUFFER (out-of-band data)".into())),
            _ => self.fail(&format!("{code:#04x} is not a pickle opcode")),
        }
    }

    fn protocol(&mut self) -> Result<()> {
        match self.byte()? {
            0..=5 => Ok(()),
            newer => Err(PickleError::Unsupported(format!("pickle protocol {newer}"))),
        }
    }

    // ---- reading the file

    fn fail<T>(&self, problem: &str) -> Result<T> {
        damaged(format!("{problem} (before byte {} of the pickle)", self.at))
    }

    /// The next `count` bytes, without moving on.
    fn peek(&self, count: usize) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        rest.get(..count)
            .ok_or_else(|| PickleError::Truncated(format!("{count} bytes should follow byte {} of the pickle, {} do", self.at, rest.len())))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let bytes = self.peek(count)?;
        self.at += count;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    /// An unsigned little-endian integer of `width` ≤ 8 bytes.
    fn unsigned(&mut self, width: usize) -> Result<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A length field. One that does not fit the address space cannot fit the file either; `take` will say so.
    fn length(&mut self, width: usize) -> Result<usize> {
        Ok(usize::try_from(self.unsigned(width)?).unwrap_or(usize::MAX))
    }

    /// The rest of a line, without its end; arguments of the text opcodes.
    fn line(&mut self) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err(PickleError::Truncated(format!("the line at byte {} of the pickle does not end", self.at)));
        };
        let line = self.take(length)?;
        self.at += 1;
        Ok(line)
    }

    fn ascii_line(&mut self) -> Result<&'a str> {
        match std::str::from_utf8(self.line()?) {
            Ok(text) => Ok(text),
            Err(_) => self.fail("a number or name is not text"),
        }
    }

    // ---- nodes and stack

    fn add(&mut self, node: Node<'a>) -> Result<Id> {
        self.budget.pay_values(1)?;
        let id = Id::try_from(self.nodes.len()).map_err(|_| PickleError::TooLarge("so many values"))?;
        self.nodes.push(node);
        Ok(id)
    }

    fn push(&mut self, node: Node<'a>) -> Result<()> {
        let id = self.add(node)?;
        self.stack.push(id);
        Ok(())
    }

    fn node(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id as usize).unwrap_or(&Node::None)
    }

    fn top(&self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.last() {
            Some(id) if self.stack.len() > floor => Ok(*id),
            _ => self.fail("an opcode needs a value that is not there"),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    /// Everything above the last MARK.
    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(height) if height <= self.stack.len() => Ok(self.stack.split_off(height)),
            _ => self.fail("an opcode needs a MARK that is not there"),
        }
    }

    fn stack_or_memo(&mut self, code: u8) -> Result<()> {
        use op::*;
        match code {
            MARK => self.marks.push(self.stack.len()),
            POP if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
            }
            POP => {
                self.pop()?;
            }
            POP_MARK => {
                self.pop_mark()?;
            }
            DUP => self.stack.push(self.top()?),
            GET | BINGET | LONG_BINGET => {
                let key = self.memo_key(code)?;
                match self.memo.get(&key) {
                    Some(id) => self.stack.push(*id),
                    None => return self.fail("a reference leads to nothing"),
                }
            }
            MEMOIZE => {
                self.memo.insert(self.memo.len() as u64, self.top()?);
            }
            _ => {
                let key = self.memo_key(code)?;
                self.memo.insert(key, self.top()?);
            }
        }
        Ok(())
    }

    fn memo_key(&mut self, code: u8) -> Result<u64> {
        match code {
            op::BINGET | op::BINPUT => self.unsigned(1),
            op::LONG_BINGET | op::LONG_BINPUT => self.unsigned(4),
            _ => match self.ascii_line()?.trim().parse() {
                Ok(key) => Ok(key),
                Err(_) => self.fail("a reference is not a number"),
            },
        }
    }

    // ---- numbers

    fn number(&mut self, code: u8) -> Result<()> {
        use op::*;
        let node = match code {
            NONE => Node::None,
            NEWTRUE => Node::Bool(true),
            NEWFALSE => Node::Bool(false),
            BININT1 => Node::Int(self.unsigned(1)? as i64),
            BININT2 => Node::Int(self.unsigned(2)? as i64),
            BININT => Node::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            // The one float that is big-endian in every pickle.
            BINFLOAT => Node::Float(f64::from_bits(self.unsigned(8)?.swap_bytes())),
            FLOAT => match self.ascii_line()?.trim().parse() {
                Ok(value) => Node::Float(value),
                Err(_) => return self.fail("a float is not a number"),
            },
            LONG1 | LONG4 => {
                let length = self.length(if code == LONG1 { 1 } else { 4 })?;
                return self.binary_int(length);
            }
            _ => return self.text_int(code == INT),
        };
        self.push(node)
    }

    /// Little-endian two's complement of any length.
    fn binary_int(&mut self, length: usize) -> Result<()> {
        let bytes = self.take(length)?;
        if length > size_of::<i128>() {
            return self.long_int(Node::Bytes(Cow::Borrowed(bytes)));
        }
        let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { -1 } else { 0 };
        self.push(int_node(bytes.iter().rev().fold(sign, |value, byte| value << 8 | i128::from(*byte))))
    }

    /// Decimal text; `I00` and `I01` are how protocols 0 and 1 write booleans.
    fn text_int(&mut self, is_int: bool) -> Result<()> {
        let text = self.ascii_line()?.trim();
        let digits = text.strip_suffix('L').unwrap_or(text);
        match digits.parse::<i128>() {
            Ok(value) if is_int && (text == "00" || text == "01") => self.push(Node::Bool(value == 1)),
            Ok(value) => self.push(int_node(value)),
            Err(_) if digits.len() > 38 && digits.bytes().all(|b| b == b'-' || b.is_ascii_digit()) => {
                self.long_int(Node::Str(Cow::Borrowed(digits)))
            }
            Err(_) => self.fail("an integer is not a number"),
        }
    }

    /// Random-number states hold integers of thousands of bits; nobody reads them here, but they must not stop us.
    fn long_int(&mut self, written: Node<'a>) -> Result<()> {
        let written = self.add(written)?;
        let args = self.add(Node::Tuple(vec![written]))?;
        self.push(Node::Opaque(Box::new(Object { class: "builtins.int".into(), args, state: Vec::new() })))
    }

    // ---- text and bytes

    fn string(&mut self, code: u8) -> Result<()> {
        use op::*;
        let width = match code {
            SHORT_BINSTRING | SHORT_BINUNICODE | SHORT_BINBYTES => 1,
            BINSTRING | BINUNICODE | BINBYTES => 4,
            BINUNICODE8 | BINBYTES8 | BYTEARRAY8 => 8,
            _ => return self.text_string(code),
        };
        let length = self.length(width)?;
        let bytes = self.take(length)?;
        self.push(match code {
            BINUNICODE | SHORT_BINUNICODE | BINUNICODE8 => utf8_node(bytes),
            BINSTRING | SHORT_BINSTRING => python2_node(Cow::Borrowed(bytes)),
            _ => Node::Bytes(Cow::Borrowed(bytes)),
        })
    }

    /// STRING: a quoted Python literal. UNICODE: text in which only `\u` and `\U` are escapes.
    fn text_string(&mut self, code: u8) -> Result<()> {
        let line = self.line()?;
        // Latin-1 bytes become at most two bytes of UTF-8 each.
        self.budget.pay_bytes(line.len().saturating_mul(2), "its text")?;
        if code == op::UNICODE {
            return match unescape_unicode(line) {
                Some(text) => self.push(Node::Str(Cow::Owned(text))),
                None => self.fail("a text has a bad escape"),
            };
        }
        let line = line.trim_ascii();
        let quoted = match line {
            [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => unescape_string(inner),
            _ => None,
        };
        match quoted {
            Some(bytes) => self.push(python2_node(Cow::Owned(bytes))),
            None => self.fail("a string literal is malformed"),
        }
    }

    // ---- containers

    fn container(&mut self, code: u8) -> Result<()> {
        use op::*;
        let node = match code {
            EMPTY_LIST => Node::List(Vec::new()),
            EMPTY_TUPLE => Node::Tuple(Vec::new()),
            EMPTY_DICT => Node::Dict(Vec::new()),
            EMPTY_SET => Node::Set(Vec::new()),
            LIST => Node::List(self.pop_mark()?),
            TUPLE => Node::Tuple(self.pop_mark()?),
            FROZENSET => Node::Set(self.pop_mark()?),
            DICT => {
                let items = self.pop_mark()?;
                Node::Dict(self.pairs(&items)?)
            }
            _ => {
                let count = usize::from(code - TUPLE1) + 1;
                let mut items = Vec::with_capacity(count);
                for _ in 0..count {
                    items.push(self.pop()?);
                }
                items.reverse();
                Node::Tuple(items)
            }
        };
        self.push(node)
    }

    fn pairs(&self, items: &[Id]) -> Result<Vec<(Id, Id)>> {
        match items.as_chunks::<2>() {
            (pairs, []) => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
            _ => self.fail("a dict has a key without a value"),
        }
    }

    /// Adds items to the container below them.
    fn fill(&mut self, code: u8) -> Result<()> {
        use op::*;
        let items = match code {
            APPEND => vec![self.pop()?],
            SETITEM => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        let is_pairs = matches!(code, SETITEM | SETITEMS);
        let pairs = if is_pairs { self.pairs(&items)? } else { Vec::new() };
        match self.nodes.get_mut(target as usize) {
            Some(Node::List(list)) if matches!(code, APPEND | APPENDS) => list.extend(items),
            Some(Node::Set(set)) if code == ADDITEMS => set.extend(items),
            Some(Node::Dict(dict)) if is_pairs => dict.extend(pairs),
            Some(Node::Opaque(_)) => {
                let state = if is_pairs { vec![self.add(Node::Dict(pairs))?] } else { items };
                self.attach(target, state);
            }
            _ => return self.fail("items are added to something that is no container"),
        }
        Ok(())
    }

    fn attach(&mut self, target: Id, state: Vec<Id>) {
        if let Some(Node::Opaque(object)) = self.nodes.get_mut(target as usize) {
            object.state.extend(state);
        }
    }

    // ---- globals, calls, persistent ids

    fn object(&mut self, code: u8) -> Result<()> {
        use op::*;
        match code {
            GLOBAL => {
                let (module, name) = (self.ascii_line()?, self.ascii_line()?);
                let id = self.global(module, name)?;
                self.stack.push(id);
                Ok(())
            }
            STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Str(module), Node::Str(name)) = (self.node(module), self.node(name)) else {
                    return self.fail("a class name is not text");
                };
                let (module, name) = (module.clone(), name.clone());
                let id = self.global(&module, &name)?;
                self.stack.push(id);
                Ok(())
            }
            REDUCE | NEWOBJ => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.push_call(callable, args)
            }
            NEWOBJ_EX => {
                let (named, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.push_call(callable, args)?;
                let target = self.top()?;
                self.attach(target, vec![named]);
                Ok(())
            }
            INST | OBJ => self.old_instance(code),
            BUILD => self.build(),
            PERSID => {
                let line = self.line()?;
                let id = self.add(python2_node(Cow::Borrowed(line)))?;
                self.persistent(id)
            }
            _ => {
                let id = self.pop()?;
                self.persistent(id)
            }
        }
    }

    /// A class or function by name. Modules that were renamed between Python or NumPy versions get one spelling.
    fn global(&mut self, module: &str, name: &str) -> Result<Id> {
        if module.len() > MAX_NAME || name.len() > MAX_NAME {
            return self.fail("a class name is longer than any class name");
        }
        self.budget.pay_bytes(module.len() + name.len() + 1, "its class names")?;
        let module = match module {
            "__builtin__" => "builtins",
            "copy_reg" => "copyreg",
            _ => module,
        };
        let full = match module.strip_prefix("numpy._core.") {
            Some(rest) => format!("numpy.core.{rest}.{name}"),
            None => format!("{module}.{name}"),
        };
        self.add(Node::Global(full.into()))
    }

    /// INST names its class in the opcode, OBJ has it above the MARK; Python 2's old-style classes.
    fn old_instance(&mut self, code: u8) -> Result<()> {
        let (callable, args) = if code == op::INST {
            let (module, name) = (self.ascii_line()?, self.ascii_line()?);
            (self.global(module, name)?, self.pop_mark()?)
        } else {
            let mut items = self.pop_mark()?;
            if items.is_empty() {
                return self.fail("an object has no class");
            }
            let args = items.split_off(1);
            (items[0], args)
        };
        let args = self.add(Node::Tuple(args))?;
        self.push_call(callable, args)
    }

    fn push_call(&mut self, callable: Id, args: Id) -> Result<()> {
        let id = self.call(callable, args)?;
        self.stack.push(id);
        Ok(())
    }

    /// What a call would give: one of the known constructors, or an opaque object that remembers the call.
    fn call(&mut self, callable: Id, args: Id) -> Result<Id> {
        let class = match self.node(callable) {
            Node::Global(name) => Rc::clone(name),
            Node::Opaque(object) => Rc::clone(&object.class),
            _ => return self.fail("something is called that is neither class nor function"),
        };
        let Node::Tuple(items) = self.node(args) else {
            return self.fail("the arguments of a call are no tuple");
        };
        // No known constructor has more than eight; copying all would let a short loop of calls copy without end.
        let head: Vec<Id> = items.iter().take(9).copied().collect();
        let known = match self.node(callable) {
            Node::Global(_) => self.known_call(&class, &head)?,
            _ => None,
        };
        match known {
            Some(id) => Ok(id),
            None => self.add(Node::Opaque(Box::new(Object { class, args, state: Vec::new() }))),
        }
    }

    /// The whole list of what this reader understands. `None`: not on it, or arguments it never has.
    fn known_call(&mut self, class: &str, args: &[Id]) -> Result<Option<Id>> {
        let node = match (class, args) {
            ("collections.OrderedDict", []) => Some(Node::Dict(Vec::new())),
            ("collections.OrderedDict", [pairs]) => self.ordered_dict(*pairs)?,
            ("builtins.set" | "builtins.frozenset", []) => Some(Node::Set(Vec::new())),
            ("builtins.set" | "builtins.frozenset", [items]) => self.set(*items)?,
            ("builtins.bytes" | "builtins.bytearray", []) => Some(Node::Bytes(Cow::Borrowed(&[]))),
            ("builtins.bytes" | "builtins.bytearray", [bytes]) => return Ok(matches!(self.node(*bytes), Node::Bytes(_)).then_some(*bytes)),
            ("_codecs.encode" | "builtins.bytearray", [text, encoding]) => self.encode(*text, *encoding)?,
            ("copyreg._reconstructor", [class, _base, _state]) => self.reconstructor(*class, args)?,
            ("torch.Size", [sizes]) => return Ok(matches!(self.node(*sizes), Node::Tuple(_)).then_some(*sizes)),
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", [data, ..]) => {
                return Ok(matches!(self.node(*data), Node::Tensor(_)).then_some(*data));
            }
            ("torch._tensor._rebuild_from_type_v2", [function, _type, args, _state]) => return self.tensor_subclass(*function, *args),
            ("torch._utils._rebuild_tensor", [storage, offset, shape, strides]) => {
                Some(self.tensor(*storage, *offset, *shape, *strides, None)?)
            }
            ("torch._utils._rebuild_tensor_v2", [storage, offset, shape, strides, _requires_grad, _hooks, rest @ ..]) => {
                self.check_flags(rest.first())?;
                Some(self.tensor(*storage, *offset, *shape, *strides, None)?)
            }
            ("torch._utils._rebuild_tensor_v3", [storage, offset, shape, strides, _requires_grad, _hooks, dtype, rest @ ..]) => {
                self.check_flags(rest.first())?;
                Some(self.tensor(*storage, *offset, *shape, *strides, Some(*dtype))?)
            }
            ("numpy.dtype", [name, ..]) => self.numpy_dtype(*name),
            ("numpy.core.multiarray._reconstruct", [class, ..]) => {
                matches!(self.node(*class), Node::Global(name) if &**name == "numpy.ndarray").then_some(Node::Array(None))
            }
            ("numpy.core.multiarray.scalar", [dtype, data]) => self.numpy_scalar(*dtype, *data),
            ("numpy.core.numeric._frombuffer", [data, dtype, shape, order, ..]) => self.array_from_buffer(*data, *dtype, *shape, *order)?,
            _ => None,
        };
        node.map(|node| self.add(node)).transpose()
    }

    /// BUILD: state for the object below it.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let target = self.top()?;
        match self.node(target) {
            Node::Opaque(_) => self.attach(target, vec![state]),
            Node::Array(None) => {
                let plan = self.array_state(state)?;
                self.replace(target, plan);
            }
            Node::NumpyDtype(_) => self.dtype_state(target, state),
            // Attributes of plain values, such as `OrderedDict._metadata`: versions of the layers, not weights.
            _ => {}
        }
        Ok(())
    }

    fn replace(&mut self, id: Id, node: Node<'a>) {
        if let Some(slot) = self.nodes.get_mut(id as usize) {
            *slot = node;
        }
    }

    /// Persistent ids of `torch/serialization.py`: `("storage", class, key, location, count)`, in the old format with the view
    /// metadata behind, and `("module", class, source file, source)`, which only serves a warning there.
    fn persistent(&mut self, id: Id) -> Result<()> {
        let parts: Vec<Id> = match self.node(id) {
            Node::Tuple(parts) => parts.iter().take(7).copied().collect(),
            _ => Vec::new(),
        };
        let kind = parts.first().and_then(|kind| self.text(*kind)).unwrap_or_default();
        match (kind, parts.as_slice()) {
            ("storage", [_, class, key, _location, count, view @ ..]) if view.len() <= 1 => {
                let storage = self.storage(*class, *key, *count, view.first().copied())?;
                self.push(Node::Storage(Box::new(storage)))
            }
            ("module", [_, class, ..]) => {
                self.stack.push(*class);
                Ok(())
            }
            _ => {
                let args = self.add(Node::Tuple(vec![id]))?;
                self.push(Node::Opaque(Box::new(Object { class: "persistent_load".into(), args, state: Vec::new() })))
            }
        }
    }

    fn storage(&mut self, class: Id, key: Id, count: Id, view: Option<Id>) -> Result<Storage> {
        let Node::Global(class) = self.node(class) else {
            return self.fail("a storage has no class");
        };
        let class = Rc::clone(class);
        let key = self.storage_key(key)?;
        let view = match view.map(|view| self.node(view)) {
            None | Some(Node::None) => None,
            Some(Node::Tuple(parts)) => match parts.as_slice() {
                [_key, offset, count] => Some((self.size(*offset)?, self.size(*count)?)),
                _ => return self.fail("a storage view has no offset and size"),
            },
            Some(_) => return self.fail("a storage view has no offset and size"),
        };
        Ok(Storage { class, key, count: self.size(count)?, view })
    }

    fn storage_key(&mut self, key: Id) -> Result<Rc<str>> {
        let key: Rc<str> = match self.node(key) {
            Node::Str(key) if key.len() <= MAX_NAME => (&**key).into(),
            Node::Int(key) => key.to_string().into(),
            _ => return self.fail("a storage has no name"),
        };
        self.budget.pay_bytes(key.len(), "its storage names")?;
        Ok(key)
    }

    // ---- arguments

    fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Str(text) => Some(text),
            _ => None,
        }
    }

    fn size(&self, id: Id) -> Result<usize> {
        match self.node(id) {
            Node::Int(value) => match usize::try_from(*value) {
                Ok(size) => Ok(size),
                Err(_) => self.fail("a size is negative"),
            },
            _ => self.fail("a size is not an integer"),
        }
    }

    fn sizes(&self, id: Id) -> Result<Vec<usize>> {
        match self.node(id) {
            Node::Tuple(ids) | Node::List(ids) if ids.len() <= MAX_DIMS => ids.iter().map(|id| self.size(*id)).collect(),
            Node::Tuple(_) | Node::List(_) => self.fail("a shape has too many dimensions"),
            _ => self.fail("a shape is no tuple"),
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The known constructors

impl<'a> Machine<'a, '_> {
    /// Python 2 passes the entries as a list of pairs.
    fn ordered_dict(&mut self, pairs: Id) -> Result<Option<Node<'a>>> {
        let (Node::List(pairs) | Node::Tuple(pairs)) = self.node(pairs) else {
            return Ok(None);
        };
        let mut entries = Vec::new();
        for pair in pairs {
            match self.node(*pair) {
                Node::List(pair) | Node::Tuple(pair) => match pair.as_slice() {
                    [key, value] => entries.push((*key, *value)),
                    _ => return Ok(None),
                },
                _ => return Ok(None),
            }
        }
        self.budget.pay_bytes(entries.len() * size_of::<(Id, Id)>(), "its dicts")?;
        Ok(Some(Node::Dict(entries)))
    }

    fn set(&mut self, items: Id) -> Result<Option<Node<'a>>> {
        let (Node::List(items) | Node::Tuple(items) | Node::Set(items)) = self.node(items) else {
            return Ok(None);
        };
        let items = items.clone();
        self.budget.pay_bytes(items.len() * size_of::<Id>(), "its sets")?;
        Ok(Some(Node::Set(items)))
    }

    /// Protocols before 3 have no bytes: Python 3 writes them as Latin-1 text to be encoded back.
    fn encode(&mut self, text: Id, encoding: Id) -> Result<Option<Node<'a>>> {
        let (Some(text), Some("latin1" | "latin-1")) = (self.text(text), self.text(encoding)) else {
            return Ok(None);
        };
        let length = text.len();
        let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
        self.budget.pay_bytes(length, "its byte strings")?;
        match bytes {
            Some(bytes) => Ok(Some(Node::Bytes(Cow::Owned(bytes)))),
            None => self.fail("a byte string has characters above 255"),
        }
    }

    /// How protocols 0 and 1 create instances. Naming the class itself tells the user more than naming this helper.
    fn reconstructor(&mut self, class: Id, args: &[Id]) -> Result<Option<Node<'a>>> {
        let Node::Global(class) = self.node(class) else {
            return Ok(None);
        };
        let class = Rc::clone(class);
        let args = self.add(Node::Tuple(args.to_vec()))?;
        Ok(Some(Node::Opaque(Box::new(Object { class, args, state: Vec::new() }))))
    }

    /// A tensor with Python attributes wraps the call that makes the plain tensor. Only those calls are followed, so this
    /// cannot recurse.
    fn tensor_subclass(&mut self, function: Id, args: Id) -> Result<Option<Id>> {
        match self.node(function) {
            Node::Global(name) if name.starts_with("torch._utils._rebuild_") => {
                let id = self.call(function, args)?;
                Ok(matches!(self.node(id), Node::Tensor(_)).then_some(id))
            }
            _ => Ok(None),
        }
    }

    fn tensor(&mut self, storage: Id, offset: Id, shape: Id, strides: Id, dtype: Option<Id>) -> Result<Node<'a>> {
        if !matches!(self.node(storage), Node::Storage(_)) {
            return self.fail("a tensor has no storage");
        }
        let dtype = match dtype.map(|dtype| self.node(dtype)) {
            None => None,
            Some(Node::Global(name)) => Some(Rc::clone(name)),
            Some(_) => return self.fail("a tensor has no element type"),
        };
        let (offset, shape, strides) = (self.size(offset)?, self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return self.fail("a tensor has more dimensions than strides, or fewer");
        }
        Ok(Node::Tensor(Box::new(TensorPlan { storage, dtype, offset, shape, strides })))
    }

    /// Metadata of `_rebuild_tensor_v2`: flags by which the stored numbers are to be conjugated or negated. Ignoring them
    /// would give wrong signs.
    fn check_flags(&self, metadata: Option<&Id>) -> Result<()> {
        match metadata.map(|id| self.node(*id)) {
            Some(Node::Dict(flags)) if flags.iter().any(|(_, flag)| !matches!(self.node(*flag), Node::Bool(false))) => {
                Err(PickleError::Unsupported("a lazily conjugated or negated tensor".into()))
            }
            _ => Ok(()),
        }
    }

    /// `numpy.dtype("u1", …)`; a name may carry its byte order in front.
    fn numpy_dtype(&self, name: Id) -> Option<Node<'a>> {
        let name = self.text(name).filter(|name| name.len() <= MAX_NAME)?;
        let plain = name.trim_start_matches(['<', '>', '|', '=']).to_owned();
        Some(Node::NumpyDtype(Box::new(NumpyDtype { name: plain, big_endian: name.starts_with('>') })))
    }

    /// State of a dtype: version, byte order, then what only structured types have.
    fn dtype_state(&mut self, target: Id, state: Id) {
        let order = match self.node(state) {
            Node::Tuple(parts) => parts.get(1).and_then(|order| self.text(*order)),
            _ => None,
        };
        let big = order == Some(">");
        if let Some(Node::NumpyDtype(dtype)) = self.nodes.get_mut(target as usize) {
            dtype.big_endian |= big;
        }
    }

    /// State of an array: `(version, shape, dtype, is_fortran, data)`; the oldest have no version.
    fn array_state(&mut self, state: Id) -> Result<Node<'a>> {
        let parts = match self.node(state) {
            Node::Tuple(parts) => parts.as_slice(),
            _ => &[],
        };
        match parts {
            [_, shape, dtype, fortran, data] | [shape, dtype, fortran, data] => {
                let fortran = matches!(self.node(*fortran), Node::Bool(true) | Node::Int(1));
                Ok(Node::Array(Some(Box::new(ArrayPlan { dtype: *dtype, shape: self.sizes(*shape)?, fortran, data: *data }))))
            }
            _ => self.fail("an array has no state"),
        }
    }

    /// How protocol 5 writes arrays. Order `K` (axes permuted at will) stays opaque.
    fn array_from_buffer(&mut self, data: Id, dtype: Id, shape: Id, order: Id) -> Result<Option<Node<'a>>> {
        let fortran = match self.text(order) {
            Some("C") => false,
            Some("F") => true,
            _ => return Ok(None),
        };
        Ok(Some(Node::Array(Some(Box::new(ArrayPlan { dtype, shape: self.sizes(shape)?, fortran, data })))))
    }

    /// A NumPy number, such as an accuracy computed with NumPy, as the Python number it equals.
    fn numpy_scalar(&self, dtype: Id, data: Id) -> Option<Node<'a>> {
        let (Node::NumpyDtype(dtype), Some(data)) = (self.node(dtype), raw_bytes(self.node(data))) else {
            return None;
        };
        let mut bytes = [0; 8];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        if dtype.big_endian {
            bytes.get_mut(..data.len())?.reverse();
        }
        let bits = u64::from_le_bytes(bytes);
        match (dtype.name.as_str(), data.len()) {
            ("f8", 8) => Some(Node::Float(f64::from_bits(bits))),
            ("f4", 4) => Some(Node::Float(f64::from(f32::from_bits(bits as u32)))),
            ("i8", 8) => Some(Node::Int(bits as i64)),
            ("i4", 4) => Some(Node::Int(i64::from(bits as i32))),
            ("i2", 2) => Some(Node::Int(i64::from(bits as i16))),
            ("i1", 1) => Some(Node::Int(i64::from(bits as i8))),
            ("u8", 8) | ("u4", 4) | ("u2", 2) | ("u1", 1) => Some(int_node(i128::from(bits))),
            ("b1", 1) => Some(Node::Bool(bits != 0)),
            _ => None,
        }
    }
}

fn int_node<'a>(value: i128) -> Node<'a> {
    match i64::try_from(value) {
        Ok(small) => Node::Int(small),
        Err(_) => Node::BigInt(Box::new(value)),
    }
}

/// Python allows lone surrogates in text; Rust does not, so such text stays bytes rather than being altered.
fn utf8_node(bytes: &[u8]) -> Node<'_> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Node::Str(Cow::Borrowed(text)),
        Err(_) => Node::Bytes(Cow::Borrowed(bytes)),
    }
}

/// Python 2's `str` is text or data; ASCII is taken for text, and [`raw_bytes`] undoes that where data is wanted.
fn python2_node(bytes: Cow<'_, [u8]>) -> Node<'_> {
    if !bytes.is_ascii() {
        return Node::Bytes(bytes);
    }
    match bytes {
        Cow::Borrowed(bytes) => utf8_node(bytes),
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Node::Str(Cow::Owned(text)),
            Err(bytes) => Node::Bytes(Cow::Owned(bytes.into_bytes())),
        },
    }
}

/// The bytes of a byte string, or of ASCII text that was one in Python 2.
fn raw_bytes<'n>(node: &'n Node<'_>) -> Option<&'n [u8]> {
    match node {
        Node::Bytes(bytes) => Some(bytes),
        Node::Str(text) if text.is_ascii() => Some(text.as_bytes()),
        _ => None,
    }
}

/// Inside of a Python 2 string literal (`string-escape` codec). `None` if an escape is cut short.
fn unescape_string(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(rest.len());
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let [kind, tail @ ..] = rest else { return None };
        rest = tail;
        match kind {
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'a' => out.push(7),
            b'b' => out.push(8),
            b'v' => out.push(11),
            b'f' => out.push(12),
            b'\\' | b'\'' | b'"' => out.push(*kind),
            b'x' => {
                out.push(u8::try_from(hex(rest.get(..2)?)?).ok()?);
                rest = rest.get(2..)?;
            }
            b'0'..=b'7' => {
                let more = rest.iter().take(2).take_while(|b| (b'0'..=b'7').contains(*b)).count();
                let digits = rest.get(..more)?;
                out.push(digits.iter().fold(kind - b'0', |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = rest.get(more..)?;
            }
            _ => out.extend([b'\\', *kind]),
        }
    }
    Some(out)
}

/// Python's `raw-unicode-escape` codec: Latin-1, except for `\uXXXX` and `\UXXXXXXXX`.
fn unescape_unicode(mut rest: &[u8]) -> Option<String> {
    let mut out = String::with_capacity(rest.len());
    while let [first, tail @ ..] = rest {
        let width = match rest {
            [b'\\', b'u', ..] => 4,
            [b'\\', b'U', ..] => 8,
            _ => 0,
        };
        if width == 0 {
            out.push(char::from(*first));
            rest = tail;
        } else {
            out.push(char::from_u32(hex(rest.get(2..2 + width)?)?)?);
            rest = rest.get(2 + width..)?;
        }
    }
    Some(out)
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}

// ---------------------------------------------------------------------------------------------------------------------
// From nodes to values

/// Bytes of each storage, by key. `'s` is the file.
type Storages<'s> = HashMap<Rc<str>, Cow<'s, [u8]>>;

/// Turns nodes into values.
struct Builder<'p, 'a> {
    pickled: &'p Pickled<'a>,
    storages: &'p Storages<'p>,
    budget: &'p mut Budget,
    /// Nodes that enclose the current one; meeting one again means that it contains itself.
    open: HashSet<Id>,
}

fn build(pickled: &Pickled<'_>, storages: &Storages<'_>, budget: &mut Budget) -> Result<Value> {
    Builder { pickled, storages, budget, open: HashSet::new() }.value(pickled.root, 0)
}

impl Builder<'_, '_> {
    fn value(&mut self, id: Id, depth: usize) -> Result<Value> {
        if depth > MAX_DEPTH {
            return Err(PickleError::TooDeep);
        }
        self.budget.pay_values(1)?;
        // The node is borrowed from the pickle, not from `self`, so that `self` stays free to recurse.
        let pickled = self.pickled;
        match pickled.node(id) {
            Node::None => Ok(Value::None),
            Node::Bool(value) => Ok(Value::Bool(*value)),
            Node::Int(value) => Ok(Value::Int(*value)),
            Node::BigInt(value) => Ok(Value::BigInt(**value)),
            Node::Float(value) => Ok(Value::Float(*value)),
            Node::Str(text) => self.string(text).map(Value::Str),
            Node::Global(name) => self.string(name).map(Value::Global),
            Node::Bytes(bytes) => {
                self.budget.pay_bytes(bytes.len(), "its byte strings")?;
                Ok(Value::Bytes(bytes.to_vec()))
            }
            Node::Storage(storage) => self.opaque(&storage.class, Vec::new()),
            Node::NumpyDtype(dtype) => Ok(Value::Global(format!("numpy.dtype.{}", dtype.name))),
            Node::Tensor(plan) => self.tensor(plan).map(Value::Tensor),
            Node::Array(Some(plan)) => self.array(plan),
            Node::Array(None) => self.opaque("numpy.ndarray", Vec::new()),
            nested => {
                if !self.open.insert(id) {
                    return self.opaque("(an enclosing object)", Vec::new());
                }
                let value = self.nested(nested, depth + 1);
                self.open.remove(&id);
                value
            }
        }
    }

    fn nested(&mut self, node: &Node<'_>, depth: usize) -> Result<Value> {
        match node {
            Node::List(ids) => self.values(ids, depth).map(Value::List),
            Node::Tuple(ids) => self.values(ids, depth).map(Value::Tuple),
            Node::Set(ids) => self.values(ids, depth).map(Value::Set),
            Node::Dict(pairs) => {
                let mut entries = Vec::new();
                for (key, value) in pairs {
                    entries.push((self.value(*key, depth)?, self.value(*value, depth)?));
                }
                Ok(Value::Dict(entries))
            }
            Node::Opaque(object) => {
                let class = self.string(&object.class)?;
                let args = match self.value(object.args, depth)? {
                    Value::Tuple(args) => args,
                    other => vec![other],
                };
                Ok(Value::Opaque { class, args, state: self.values(&object.state, depth)? })
            }
            _ => Ok(Value::None),
        }
    }

    fn values(&mut self, ids: &[Id], depth: usize) -> Result<Vec<Value>> {
        ids.iter().map(|id| self.value(*id, depth)).collect()
    }

    fn string(&mut self, text: &str) -> Result<String> {
        self.budget.pay_bytes(text.len(), "its text")?;
        Ok(text.to_owned())
    }

    fn opaque(&mut self, class: &str, args: Vec<Value>) -> Result<Value> {
        Ok(Value::Opaque { class: self.string(class)?, args, state: Vec::new() })
    }

    fn tensor(&mut self, plan: &TensorPlan) -> Result<RawTensor> {
        let Node::Storage(storage) = self.pickled.node(plan.storage) else {
            return damaged("a tensor has no storage");
        };
        let dtype = match &plan.dtype {
            Some(name) => Dtype::from_global(name)?,
            None => Dtype::from_storage(&storage.class)?,
        };
        let stored = storage_slice(storage, self.storages)?;
        let reader = Strided { bytes: stored, size: dtype.size(), offset: plan.offset, shape: &plan.shape, strides: &plan.strides };
        match reader.gather(self.budget)? {
            Some(bytes) => Ok(RawTensor { dtype, shape: plan.shape.clone(), bytes }),
            None => Err(PickleError::OutOfStorage { storage: storage.key.to_string(), shape: plan.shape.clone(), stored: stored.len() }),
        }
    }

    fn array(&mut self, plan: &ArrayPlan) -> Result<Value> {
        let Node::NumpyDtype(dtype) = self.pickled.node(plan.dtype) else {
            return damaged("an array has no element type");
        };
        const NUMBERS: [&str; 12] = ["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"];
        if !NUMBERS.contains(&dtype.name.as_str()) {
            let name = Value::Str(self.string(&dtype.name)?);
            return self.opaque("numpy.ndarray", vec![name]);
        }
        let Some(data) = raw_bytes(self.pickled.node(plan.data)) else {
            return damaged("an array has no data");
        };
        let size = dtype.name.bytes().last().map_or(1, |digit| usize::from(digit - b'0'));
        let strides = dense_strides(&plan.shape, plan.fortran);
        let reader = Strided { bytes: data, size, offset: 0, shape: &plan.shape, strides: &strides };
        let bytes = reader.gather(self.budget)?;
        let Some(mut bytes) = bytes.filter(|bytes| bytes.len() == data.len()) else {
            return damaged(format!("an array of shape {:?} and type {} has {} bytes of data", plan.shape, dtype.name, data.len()));
        };
        if dtype.big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        Ok(Value::Array(RawArray { dtype: dtype.name.clone(), shape: plan.shape.clone(), bytes }))
    }
}

/// The bytes a persistent id stands for.
fn storage_slice<'s>(storage: &Storage, storages: &'s Storages<'_>) -> Result<&'s [u8]> {
    let all = storages.get(&storage.key).ok_or_else(|| PickleError::MissingStorage(storage.key.to_string()))?;
    let size = Dtype::from_storage(&storage.class)?.size();
    let (first, count) = storage.view.unwrap_or((0, storage.count));
    let start = first.checked_mul(size);
    let end = first.checked_add(count).and_then(|end| end.checked_mul(size));
    match (start, end) {
        (Some(start), Some(end)) if end <= all.len() => Ok(all.get(start..end).unwrap_or_default()),
        _ => damaged(format!(
            "storage `{}` should hold {} elements of {size} bytes; it holds {} bytes",
            storage.key,
            first.saturating_add(count),
            all.len()
        )),
    }
}

/// Strides, in elements, of a dense array; saturating, because a shape that overflows is refused by its element count.
fn dense_strides(shape: &[usize], fortran: bool) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    let mut next = 1_usize;
    for i in 0..shape.len() {
        let dim = if fortran { i } else { shape.len() - 1 - i };
        strides[dim] = next;
        next = next.saturating_mul(shape[dim]);
    }
    strides
}

/// Elements laid out with strides; `size` is in bytes, everything else in elements.
struct Strided<'s> {
    bytes: &'s [u8],
    size: usize,
    offset: usize,
    shape: &'s [usize],
    strides: &'s [usize],
}

impl Strided<'_> {
    /// The elements in row-major order, or `None` if some lie outside of `bytes`.
    fn gather(&self, budget: &mut Budget) -> Result<Option<Vec<u8>>> {
        // Beside a dimension of 0, overflow of the others must not be an error.
        if self.shape.contains(&0) {
            return Ok(Some(Vec::new()));
        }
        let count = self.shape.iter().try_fold(1_usize, |count, dim| count.checked_mul(*dim));
        let (Some(end), Some(start)) = (self.end(), self.offset.checked_mul(self.size)) else {
            return Ok(None);
        };
        if end > self.bytes.len() {
            return Ok(None);
        }
        let total = count.and_then(|count| count.checked_mul(self.size)).ok_or(PickleError::TooLarge("a tensor"))?;
        budget.pay_bytes(total, "a tensor")?;
        if self.is_dense() {
            return Ok(self.bytes.get(start..end).map(<[u8]>::to_vec));
        }
        let mut out = Vec::with_capacity(total);
        self.copy(&mut out, self.shape, self.strides, start);
        Ok(Some(out))
    }

    /// Byte after the last element; `None` on overflow. Strides are not negative, so the last index is the furthest.
    fn end(&self) -> Option<usize> {
        let mut last = self.offset;
        for (dim, stride) in self.shape.iter().zip(self.strides) {
            last = last.checked_add((dim - 1).checked_mul(*stride)?)?;
        }
        last.checked_add(1)?.checked_mul(self.size)
    }

    /// Whether the elements already lie in row-major order. The stride of a dimension of 1 does not matter.
    fn is_dense(&self) -> bool {
        let dense = dense_strides(self.shape, false);
        self.shape.iter().zip(self.strides).zip(dense).all(|((dim, stride), dense)| *dim == 1 || *stride == dense)
    }

    /// Appends the elements of the remaining dimensions, the first of which is at byte `at`. The arithmetic stays below
    /// `end()`, which did not overflow.
    fn copy(&self, out: &mut Vec<u8>, shape: &[usize], strides: &[usize], at: usize) {
        let ([dim, shape @ ..], [stride, strides @ ..]) = (shape, strides) else {
            out.extend_from_slice(self.bytes.get(at..at + self.size).unwrap_or_default());
            return;
        };
        for index in 0..*dim {
            self.copy(out, shape, strides, at + index * stride * self.size);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

/// Reads a file written by `torch.save`: the zip format (PyTorch 1.6 and later) or the older one.
///
/// # Errors
///
/// The file cannot be read, or [`read_torch_bytes`] refuses its content.
pub fn read_torch(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|error| PickleError::Io(error.to_string()))?;
    read_torch_bytes(&bytes)
}

/// Reads the content of a file written by `torch.save`. Objects of unknown classes are [`Value::Opaque`]; whether what is
/// there is enough is for [`state_dict`] to say.
///
/// # Errors
///
/// Not such a file (saying what it looks like), TorchScript, truncated, damaged, element types outside [`Dtype`], big-endian
/// data, or content out of proportion to the file's size. Never panics, whatever the bytes.
pub fn read_torch_bytes(bytes: &[u8]) -> Result<Value> {
    let mut budget = Budget::for_file(bytes.len());
    if is_zip(bytes) {
        return read_zip(bytes, &mut budget);
    }
    if let Some(other) = signature(bytes) {
        return Err(PickleError::NotAPickle(other.into()));
    }
    read_legacy(bytes, &mut budget)
}

/// Reads a plain pickle of protocol 0 to 5, such as a CIFAR batch. Bytes after its end are ignored, as in Python.
///
/// # Errors
///
/// Not a pickle (saying what it looks like), truncated, damaged, or content out of proportion to its size. A PyTorch file is
/// refused with the advice to use [`read_torch`]'s formats. Never panics, whatever the bytes.
pub fn read_pickle(bytes: &[u8]) -> Result<Value> {
    let mut budget = Budget::for_file(bytes.len());
    if is_zip(bytes) {
        return Err(PickleError::NotAPickle("a zip archive (perhaps a PyTorch file)".into()));
    }
    if let Some(other) = signature(bytes) {
        return Err(PickleError::NotAPickle(other.into()));
    }
    let pickled = first_pickle(bytes, &mut budget)?;
    if pickled.root_int() == Some(LEGACY_MAGIC) {
        return Err(PickleError::NotAPickle("a PyTorch file, not a plain pickle".into()));
    }
    build(&pickled, &Storages::new(), &mut budget)
}

/// The pickle at the start of a file. Pickles of protocols 0 and 1 have no signature, so if one without it fails, the file
/// most likely is something else.
fn first_pickle<'a>(bytes: &'a [u8], budget: &mut Budget) -> Result<Pickled<'a>> {
    unpickle(bytes, 0, budget).map_err(|error| match bytes {
        [op::PROTO, 0..=15, ..] | [op::PROTO] | [b'(', b'd' | b'l', b'p', ..] | [b'}' | b']', b'q', ..] => error,
        _ => PickleError::NotAPickle(describe(bytes)),
    })
}

/// First value of an old-format file (`torch/serialization.py`, `MAGIC_NUMBER` and `PROTOCOL_VERSION`).
const LEGACY_MAGIC: i128 = 0x1950_a86a_20f9_469c_fc6c;
const LEGACY_VERSION: i128 = 1001;

/// The old format: pickles of the magic number, the version, system information, the data and the list of storage keys, then
/// for each key the number of elements (8 bytes) and the elements.
fn read_legacy(bytes: &[u8], budget: &mut Budget) -> Result<Value> {
    let magic = first_pickle(bytes, budget)?;
    if magic.root_int() != Some(LEGACY_MAGIC) {
        return Err(PickleError::NotTorch("it is a plain Python pickle".into()));
    }
    let version = unpickle(bytes, magic.end, budget)?;
    if version.root_int() != Some(LEGACY_VERSION) {
        return Err(PickleError::Unsupported("an unknown version of the old PyTorch format".into()));
    }
    let system = unpickle(bytes, version.end, budget)?;
    if build(&system, &Storages::new(), budget)?.get("little_endian") == Some(&Value::Bool(false)) {
        return Err(PickleError::BigEndian);
    }
    let data = unpickle(bytes, system.end, budget)?;
    let keys = unpickle(bytes, data.end, budget)?;
    let storages = legacy_storages(bytes, &data, &keys, budget)?;
    build(&data, &storages, budget)
}

fn legacy_storages<'s>(bytes: &'s [u8], data: &Pickled<'_>, keys: &Pickled<'_>, budget: &mut Budget) -> Result<Storages<'s>> {
    let mut classes: HashMap<&str, &str> = HashMap::new();
    for storage in data.storages() {
        // A storage has the type it was first mentioned with.
        classes.entry(&storage.key).or_insert(&storage.class);
    }
    let Value::List(names) = build(keys, &Storages::new(), budget)? else {
        return damaged("the list of storages is missing");
    };
    let mut storages = Storages::new();
    let mut rest = bytes.get(keys.end..).unwrap_or_default();
    for name in names {
        let key: Rc<str> = match &name {
            Value::Str(key) => key.as_str().into(),
            Value::Int(key) => key.to_string().into(),
            _ => return damaged("a storage has no name"),
        };
        let class = classes.get(&*key).ok_or_else(|| PickleError::Damaged(format!("no tensor uses storage `{key}`")))?;
        let cut = || PickleError::Truncated(format!("the data of storage `{key}` is cut off"));
        let (count, after) = rest.split_first_chunk::<8>().ok_or_else(cut)?;
        let count = usize::try_from(u64::from_le_bytes(*count)).ok();
        let length = count.and_then(|count| count.checked_mul(Dtype::from_storage(class).ok()?.size()));
        // An unsupported type is reported by its name, not as a wrong length.
        Dtype::from_storage(class)?;
        let (content, after) = length.and_then(|length| after.split_at_checked(length)).ok_or_else(cut)?;
        storages.insert(Rc::clone(&key), Cow::Borrowed(content));
        rest = after;
    }
    Ok(storages)
}

/// The zip format: `data.pkl`, one entry `data/KEY` per storage and, since PyTorch 2.0, `byteorder`, all in one folder.
fn read_zip(bytes: &[u8], budget: &mut Budget) -> Result<Value> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| match error {
        ZipError::InvalidArchive(problem) => {
            PickleError::Truncated(format!("it starts as a zip archive but has no whole directory ({problem})"))
        }
        other => PickleError::Damaged(other.to_string()),
    })?;
    let root = archive_root(&archive)?;
    if let Some(index) = archive.index_for_name(&format!("{root}byteorder"))
        && zip_entry(&mut archive, index, bytes, budget)?.trim_ascii() != b"little"
    {
        return Err(PickleError::BigEndian);
    }
    let Some(index) = archive.index_for_name(&format!("{root}data.pkl")) else {
        return Err(PickleError::NotTorch("the archive has no `data.pkl`".into()));
    };
    let pickle = zip_entry(&mut archive, index, bytes, budget)?;
    let pickled = unpickle(&pickle, 0, budget)?;
    let mut storages = Storages::new();
    for storage in pickled.storages() {
        // A storage that is not there only matters if a tensor needs it.
        if !storages.contains_key(&storage.key)
            && let Some(index) = archive.index_for_name(&format!("{root}data/{}", storage.key))
        {
            let content = zip_entry(&mut archive, index, bytes, budget)?;
            storages.insert(Rc::clone(&storage.key), content);
        }
    }
    build(&pickled, &storages, budget)
}

type Archive<'s> = ZipArchive<Cursor<&'s [u8]>>;

/// Folder, with its slash, in which `data.pkl` lies: `torch.save` names it after the file, or `archive`. Empty if the archive
/// was packed anew without it.
fn archive_root(archive: &Archive<'_>) -> Result<String> {
    let names: Vec<&str> = archive.file_names_raw().filter_map(|name| std::str::from_utf8(name).ok()).collect();
    let inner = |name: &str| name.split_once('/').is_some_and(|(_, rest)| rest == "constants.pkl" || rest.starts_with("code/"));
    if names.iter().any(|name| inner(name)) {
        return Err(PickleError::TorchScript);
    }
    let roots = names.iter().filter_map(|name| name.strip_suffix("data.pkl"));
    match roots.filter(|root| root.is_empty() || root.find('/') == Some(root.len() - 1)).min_by_key(|root| root.len()) {
        Some(root) => Ok((*root).to_owned()),
        None => {
            let first = names.first().map_or(String::new(), |name| format!("; its first entry is `{}`", shortened(name)));
            Err(PickleError::NotTorch(format!("it is a zip archive without `data.pkl`{first}")))
        }
    }
}

/// Content of an entry, checked against its checksum. `torch.save` stores without compression, so that the content can be
/// borrowed; compressed entries come from archives that were packed anew.
fn zip_entry<'s>(archive: &mut Archive<'s>, index: usize, bytes: &'s [u8], budget: &mut Budget) -> Result<Cow<'s, [u8]>> {
    let failed = |error: ZipError| PickleError::Damaged(format!("an entry of the archive cannot be read ({error})"));
    // PyTorch writes 0 where checksums were switched off (`torch.utils.serialization.config.save.compute_crc32`).
    let unchecked = archive.by_index_data(index).map_err(failed)?.crc32() == 0;
    let mut entry = archive.by_index_with_options(index, ZipReadOptions::new().ignore_crc32(unchecked)).map_err(failed)?;
    let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
    let unreadable = |error: std::io::Error| PickleError::Damaged(format!("entry `{}` of the archive: {error}", shortened(&name)));
    // Paid also when borrowed: entries can overlap, and checking each takes time.
    let size = usize::try_from(entry.size()).map_err(|_| PickleError::TooLarge("an entry of the archive"))?;
    budget.pay_bytes(size, "an entry of the archive")?;

    if entry.compression() == CompressionMethod::Stored {
        std::io::copy(&mut entry, &mut std::io::sink()).map_err(unreadable)?;
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok());
        let content = start.and_then(|start| bytes.get(start..start.checked_add(size)?));
        return content
            .map(Cow::Borrowed)
            .ok_or_else(|| PickleError::Truncated(format!("entry `{}` of the archive is cut off", shortened(&name))));
    }
    // The crate's reader stops at the declared size, which is paid for; memory grows with what is really there.
    let mut content = Vec::new();
    entry.read_to_end(&mut content).map_err(unreadable)?;
    Ok(Cow::Owned(content))
}

// ---------------------------------------------------------------------------------------------------------------------
// What a file looks like

fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06")
}

/// Formats that can be told by their first bytes and are no pickle.
fn signature(bytes: &[u8]) -> Option<&'static str> {
    const SIGNATURES: [(&[u8], &str); 14] = [
        (b"\x7fELF", "an ELF program or library"),
        (b"\x1f\x8b", "a gzip file; unpack it first"),
        (b"BZh", "a bzip2 file; unpack it first"),
        (b"\xfd7zXZ", "an xz file; unpack it first"),
        (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first"),
        (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
        (b"\x89HDF", "an HDF5 file (Keras?)"),
        (b"\x93NUMPY", "a NumPy .npy file"),
        (b"GGUF", "a GGUF file"),
        (b"\x89PNG", "a PNG image"),
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"%PDF", "a PDF file"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (b"MZ", "a Windows program"),
    ];
    if bytes.is_empty() {
        return Some("an empty file");
    }
    // safetensors: 8 bytes of header length, then a JSON header.
    if let Some((length, [b'{', ..])) = bytes.split_first_chunk::<8>()
        && u64::from_le_bytes(*length) <= bytes.len() as u64
    {
        return Some("a safetensors file");
    }
    if bytes.get(257..262) == Some(b"ustar") {
        return Some("a tar archive; unpack it first (PyTorch 0.1 also saved as tar, which is not supported)");
    }
    SIGNATURES.iter().find(|(start, _)| bytes.starts_with(start)).map(|(_, name)| *name)
}

/// A guess for content without a signature.
fn describe(bytes: &[u8]) -> String {
    let head = bytes.get(..bytes.len().min(512)).unwrap_or_default();
    // A character may be cut at the end of the head.
    let is_text = |head: &[u8]| match std::str::from_utf8(head) {
        Ok(text) => !text.contains('\0'),
        Err(error) => error.error_len().is_none() && !head.contains(&0),
    };
    match head.trim_ascii_start() {
        [b'<', ..] if is_text(head) => "a web page or XML text (did a download return an error page?)".into(),
        [b'{' | b'[', ..] if is_text(head) => "JSON text or the like".into(),
        _ if is_text(head) => "text".into(),
        _ => {
            let first: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            format!("unknown data that starts with the bytes {}", first.join(" "))
        }
    }
}

/// At most 80 characters of a name from a file, for a message.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_owned(),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// State dicts

/// Keys under which training programs put the state dict, beside epoch, optimizer and so on.
const WRAPPERS: [&str; 4] = ["state_dict", "model", "net", "model_state_dict"];

/// The named tensors of a model, in the order of the file.
///
/// A dict under `state_dict`, `model`, `net` or `model_state_dict` is unwrapped, at most twice. Entries beside the tensors that
/// are none are left out. If all names start with `module.` (`DataParallel`), that is removed once.
///
/// # Errors
///
/// A whole pickled model, another object, no tensors, a tensor that is not dense or has no name, two of the same name.
pub fn state_dict(value: Value) -> Result<Vec<(String, RawTensor)>> {
    let mut level = value;
    for _ in 0..2 {
        match unwrapped(level) {
            Ok(inner) => level = inner,
            Err(innermost) => {
                level = innermost;
                break;
            }
        }
    }
    match level {
        Value::Dict(entries) if entries.iter().any(|(_, value)| matches!(value, Value::Tensor(_))) => named_tensors(entries),
        Value::Dict(entries) => Err(no_tensors(&entries)),
        Value::Opaque { class, state, .. } => Err(refused_object(class, &state)),
        other => Err(PickleError::NoStateDict(format!("the file holds {}", other.describe()))),
    }
}

/// The dict inside a wrapper, or the value itself as the error.
fn unwrapped(value: Value) -> Result<Value, Value> {
    let Value::Dict(mut entries) = value else {
        return Err(value);
    };
    let full = |value: &Value| matches!(value, Value::Dict(inner) if !inner.is_empty());
    for wrapper in WRAPPERS {
        if let Some(at) = entries.iter().position(|(key, value)| key.text() == Some(wrapper) && full(value)) {
            return Ok(entries.swap_remove(at).1);
        }
    }
    Err(Value::Dict(entries))
}

fn named_tensors(entries: Vec<(Value, Value)>) -> Result<Vec<(String, RawTensor)>> {
    let mut tensors = Vec::new();
    for (key, value) in entries {
        match (key.text(), value) {
            (Some(key), Value::Tensor(tensor)) => tensors.push((key.to_owned(), tensor)),
            (None, Value::Tensor(_)) => {
                return Err(PickleError::NoStateDict(format!("a tensor is named by {}, not by text", key.describe())));
            }
            // Leaving these out would show up later, as a missing weight, without the reason.
            (key, Value::Opaque { class, .. }) if class.starts_with("torch._utils._rebuild_") || class.starts_with("torch._tensor.") => {
                return Err(PickleError::UnsupportedTensor { key: key.unwrap_or("?").to_owned(), class });
            }
            _ => {}
        }
    }
    if tensors.iter().all(|(key, _)| key.starts_with("module.")) {
        for (key, _) in &mut tensors {
            key.drain(.."module.".len());
        }
    }
    let mut seen = HashSet::new();
    match tensors.iter().find(|(key, _)| !seen.insert(key.as_str())) {
        Some((key, _)) => Err(PickleError::DuplicateKey(key.clone())),
        None => Ok(tensors),
    }
}

/// Says what is in a dict without tensors; if a model is, how to get at its weights.
fn no_tensors(entries: &[(Value, Value)]) -> PickleError {
    for (key, value) in entries {
        if let (Some(key), Value::Opaque { class, state, .. }) = (key.text(), value)
            && (WRAPPERS.contains(&key) || is_module(class, state))
        {
            return refused_object(class.clone(), state);
        }
    }
    let shown = |(key, value): &(Value, Value)| {
        let key = key.text().map_or_else(|| key.describe(), |key| format!("`{}`", shortened(key)));
        format!("{key} ({})", value.describe())
    };
    let mut list: Vec<String> = entries.iter().take(8).map(shown).collect();
    if entries.len() > list.len() {
        list.push(format!("and {} more", entries.len() - list.len()));
    }
    let content = if list.is_empty() { "nothing".to_owned() } else { list.join(", ") };
    PickleError::NoStateDict(format!("there is no tensor in the dict; it holds {content}"))
}

fn refused_object(class: String, state: &[Value]) -> PickleError {
    if is_module(&class, state) { PickleError::WholeModule { class } } else { PickleError::Foreign { class } }
}

/// Every `nn.Module` keeps its content in these two attributes (`torch/nn/modules/module.py`).
fn is_module(class: &str, state: &[Value]) -> bool {
    class.starts_with("torch.nn.") || state.iter().any(|state| state.get("_parameters").is_some() && state.get("_modules").is_some())
}
