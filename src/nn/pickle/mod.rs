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

mod archive;
mod builder;
mod error;
mod machine;
mod state_dict;
mod value;

pub use archive::{is_onnx, read_extra, read_pickle, read_torch, read_torch_bytes};
pub use error::PickleError;
pub use state_dict::state_dict;
pub use value::{Dtype, RawArray, RawTensor, Value};

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::{Cursor, Read};
use std::path::Path;
use std::rc::Rc;
use zip::CompressionMethod;
use zip::read::{ZipArchive, ZipReadOptions};
use zip::result::ZipError;

type Result<T, E = PickleError> = std::result::Result<T, E>;

fn damaged<T>(problem: impl Into<String>) -> Result<T> {
    Err(PickleError::Damaged(problem.into()))
}

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

#[cfg(test)]
mod tests {
    use super::machine::unpickle;
    use super::*;

    /// The files that `make_goldens.py` writes.
    const FILES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pickle");

    fn file(name: &str) -> Vec<u8> {
        std::fs::read(Path::new(FILES).join(name)).unwrap()
    }

    fn torch(name: &str) -> Value {
        read_torch(&Path::new(FILES).join(name)).unwrap()
    }

    fn weights(name: &str) -> Vec<(String, RawTensor)> {
        state_dict(torch(name)).unwrap()
    }

    fn torch_error(name: &str) -> PickleError {
        read_torch(&Path::new(FILES).join(name)).unwrap_err()
    }

    fn dict_error(name: &str) -> PickleError {
        state_dict(torch(name)).unwrap_err()
    }

    fn keys(tensors: &[(String, RawTensor)]) -> Vec<&str> {
        tensors.iter().map(|(key, _)| key.as_str()).collect()
    }

    fn floats(tensor: &RawTensor) -> Vec<f32> {
        assert_eq!(tensor.dtype, Dtype::F32);
        tensor.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    /// The formula of `make_goldens.py`.
    fn ramp(index: usize) -> f32 {
        index as f32 * 0.25 - 1.0
    }

    fn ramps(indices: impl IntoIterator<Item = usize>) -> Vec<f32> {
        indices.into_iter().map(ramp).collect()
    }

    fn assert_plain(tensors: &[(String, RawTensor)]) {
        assert_eq!(keys(tensors), ["fc.weight", "fc.bias"]);
        assert_eq!((&*tensors[0].1.shape, &*tensors[1].1.shape), (&[2, 3][..], &[2][..]));
        assert_eq!(floats(&tensors[0].1), ramps(0..6));
        assert_eq!(floats(&tensors[1].1), ramps(0..2));
    }

    #[test]
    fn plain_and_repacked_archives() {
        for name in ["plain.pth", "no_crc.pth", "deflated.pth"] {
            assert_plain(&weights(name));
        }
    }

    #[test]
    fn ordered_dict_keeps_its_order_in_both_formats() {
        for name in ["ordered.pth", "legacy.pth"] {
            let tensors = weights(name);
            let expected = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"];
            assert_eq!(keys(&tensors), expected);
            for (_, tensor) in &tensors[..6] {
                assert_eq!(floats(tensor), ramps(0..tensor.shape.iter().product()));
            }
            let count = &tensors[6].1;
            assert_eq!((count.dtype, &*count.shape, &*count.bytes), (Dtype::I64, &[][..], &7_i64.to_le_bytes()[..]));
        }
    }

    #[test]
    fn wrappers_and_prefix_are_removed() {
        for name in ["wrapped.pth", "namespace.pth", "tensor_beside.pth", "prefixed.pth", "caller_beside.pth"] {
            assert_plain(&weights(name));
        }
        let wrapped = torch("wrapped.pth");
        assert_eq!(wrapped.get("epoch"), Some(&Value::Int(3)));
        assert_eq!(wrapped.get("best_acc1"), Some(&Value::Float(0.9)));
        let Some(Value::Opaque { class, state, .. }) = torch("namespace.pth").get("args").cloned() else { panic!() };
        assert_eq!(class, "argparse.Namespace");
        assert_eq!(state[0].get("arch"), Some(&Value::Str("x".into())));
        assert_eq!(torch("namespace.pth").get("rng"), Some(&Value::Float(0.5)));
    }

    #[test]
    fn prefix_stays_unless_all_names_have_it_and_names_are_unique() {
        let tensor = || Value::Tensor(RawTensor { dtype: Dtype::U8, shape: vec![1], bytes: vec![1] });
        let dict = |names: &[&str]| Value::Dict(names.iter().map(|name| (Value::Str((*name).into()), tensor())).collect());
        let names = |names| state_dict(dict(names)).map(|tensors| keys(&tensors).join(" "));
        assert_eq!(names(&["module.a", "module.b"]).unwrap(), "a b");
        assert_eq!(names(&["module.module.a"]).unwrap(), "module.a");
        assert_eq!(names(&["module.a", "b"]).unwrap(), "module.a b");
        assert_eq!(names(&["a", "a"]).unwrap_err(), PickleError::DuplicateKey("a".into()));
        let wrap = |value| Value::Dict(vec![(Value::Str("model".into()), value)]);
        assert!(state_dict(wrap(wrap(dict(&["a"])))).is_ok());
        assert!(matches!(state_dict(wrap(wrap(wrap(dict(&["a"]))))), Err(PickleError::NoStateDict(_))));
    }

    #[test]
    fn views_are_made_contiguous() {
        for name in ["views.pth", "views_legacy.pth"] {
            let value = torch(name);
            let view = |key: &str| match value.get(key) {
                Some(Value::Tensor(tensor)) => (tensor.shape.clone(), floats(tensor)),
                other => panic!("{key}: {other:?}"),
            };
            assert_eq!(view("base"), (vec![4, 6], ramps(0..24)));
            assert_eq!(view("transposed"), (vec![6, 4], ramps((0..24).map(|i| i % 4 * 6 + i / 4))));
            assert_eq!(view("sliced"), (vec![2, 3], ramps([8, 9, 10, 14, 15, 16])));
            assert_eq!(view("stepped"), (vec![4, 3], ramps((0..12).map(|i| i * 2))));
            assert_eq!(view("expanded"), (vec![2, 3], ramps([0, 1, 2, 0, 1, 2])));
            assert_eq!(view("empty"), (vec![0, 3], vec![]));
        }
    }

    #[test]
    fn views_of_storages_as_pytorch_0_3_wrote_them() {
        let tensors = weights("legacy_view.pth");
        assert_eq!(keys(&tensors), ["head", "tail"]);
        assert_eq!(floats(&tensors[0].1), ramps(0..2));
        assert_eq!((&*tensors[1].1.shape, floats(&tensors[1].1)), (&[2, 2][..], ramps(2..6)));
    }

    #[test]
    fn element_types() {
        let value = torch("dtypes.pth");
        let tensor = |key: &str| match value.get(key) {
            Some(Value::Tensor(tensor)) => tensor,
            other => panic!("{key}: {other:?}"),
        };
        let check = |dtype: Dtype, bytes: Vec<u8>| {
            let tensor = tensor(dtype.name());
            assert_eq!((tensor.dtype, &tensor.bytes), (dtype, &bytes));
            assert_eq!(tensor.bytes.len(), tensor.shape.iter().product::<usize>() * dtype.size());
        };
        check(Dtype::F64, (0..8).flat_map(|i| f64::from(ramp(i)).to_le_bytes()).collect());
        check(Dtype::F32, (0..8).flat_map(|i| ramp(i).to_le_bytes()).collect());
        // -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75 in binary16
        let half: [u16; 8] = [0xbc00, 0xba00, 0xb800, 0xb400, 0, 0x3400, 0x3800, 0x3a00];
        check(Dtype::F16, half.iter().flat_map(|bits| bits.to_le_bytes()).collect());
        // The same numbers in bfloat16, which is the upper half of binary32.
        check(Dtype::Bf16, (0..8).flat_map(|i| ((ramp(i).to_bits() >> 16) as u16).to_le_bytes()).collect());
        check(Dtype::I64, (-3_i64..5).flat_map(i64::to_le_bytes).collect());
        check(Dtype::I32, (-3_i32..5).flat_map(i32::to_le_bytes).collect());
        check(Dtype::I16, (-3_i16..5).flat_map(i16::to_le_bytes).collect());
        check(Dtype::I8, (-3_i8..5).flat_map(i8::to_le_bytes).collect());
        check(Dtype::U8, vec![0, 1, 255]);
        check(Dtype::Bool, vec![1, 0, 1]);
        let scalar = tensor("scalar");
        assert_eq!((&*scalar.shape, &*scalar.bytes), (&[][..], &(1_i64 << 40).to_le_bytes()[..]));
    }

    #[test]
    fn parameters_are_tensors() {
        let tensors = weights("parameter.pth");
        assert_eq!(keys(&tensors), ["plain", "marked"]);
        assert_eq!(floats(&tensors[0].1), ramps(0..4));
        assert_eq!(floats(&tensors[1].1), ramps(0..2));
    }

    #[test]
    fn refusals_name_the_reason() {
        assert_eq!(torch_error("torchscript.pth"), PickleError::TorchScript);
        assert_eq!(torch_error("big_endian.pth"), PickleError::BigEndian);
        assert_eq!(torch_error("complex.pth"), PickleError::UnsupportedDtype("torch.ComplexFloatStorage".into()));
        assert_eq!(torch_error("uint16.pth"), PickleError::UnsupportedDtype("torch.uint16".into()));
        assert!(matches!(torch_error("negated.pth"), PickleError::Unsupported(what) if what.contains("negated")));
        assert!(matches!(torch_error("other.zip"), PickleError::NotTorch(what) if what.contains("without `data.pkl`")));
        assert!(matches!(torch_error("cifar_py3.pkl"), PickleError::NotTorch(_)));
        assert!(matches!(torch_error("no such file"), PickleError::Io(_)));
        let class = "torch._utils._rebuild_sparse_tensor".to_owned();
        assert_eq!(dict_error("sparse.pth"), PickleError::UnsupportedTensor { key: "s".into(), class });
        let error = read_pickle(&file("legacy.pth")).unwrap_err();
        assert!(error.to_string().contains("a PyTorch file, not a plain pickle"), "{error}");
    }

    #[test]
    fn whole_models_are_refused_with_advice() {
        for (name, class) in [
            ("whole_linear.pth", "torch.nn.modules.linear.Linear"),
            ("whole_user.pth", "usermodels.Net"),
            ("whole_user_legacy.pth", "usermodels.Net"),
            ("whole_in_dict.pth", "usermodels.Net"),
        ] {
            let error = dict_error(name);
            assert_eq!(error, PickleError::WholeModule { class: class.into() });
            assert!(error.to_string().contains("torch.save(model.state_dict()"));
        }
    }

    #[test]
    fn calls_are_never_made() {
        let marker = Path::new("pickle_was_executed");
        assert_eq!(dict_error("caller.pth"), PickleError::Foreign { class: "posix.system".into() });
        assert!(dict_error("caller_in_dict.pth").to_string().contains("posix.system"));
        let command = Value::Str("touch pickle_was_executed".into());
        let expected = Value::Opaque { class: "posix.system".into(), args: vec![command], state: vec![] };
        assert_eq!(read_pickle(&file("caller.pkl")).unwrap(), expected);
        assert_eq!(torch("caller_beside.pth").get("x"), Some(&expected));
        assert!(!marker.exists());
    }

    #[test]
    fn cifar_batches_of_python_2_and_3() {
        for name in ["cifar_py2.pkl", "cifar_py3.pkl"] {
            let batch = read_pickle(&file(name)).unwrap();
            let Some(Value::Array(data)) = batch.get("data") else { panic!("{name}") };
            assert_eq!((data.dtype.as_str(), &*data.shape), ("u1", &[2, 3072][..]));
            assert!(data.bytes.iter().enumerate().all(|(i, pixel)| usize::from(*pixel) == i * 7 % 256));
            assert_eq!(batch.get("labels"), Some(&Value::List(vec![Value::Int(0), Value::Int(1)])));
            assert_eq!(batch.get("batch_label").and_then(Value::text), Some("training batch 1 of 5"));
            let Some(Value::List(names)) = batch.get("filenames") else { panic!("{name}") };
            assert_eq!(names[1].text(), Some("image_1.png"));
        }
    }

    #[test]
    fn all_protocols() {
        for protocol in 0..=5 {
            let value = read_pickle(&file(&format!("misc_{protocol}.pkl"))).unwrap();
            let get = |key: &str| value.get(key).cloned().unwrap();
            let ints = |values: &[i64]| values.iter().map(|value| Value::Int(*value)).collect::<Vec<_>>();
            assert_eq!(get("none"), Value::None);
            assert_eq!(get("bools"), Value::Tuple(vec![Value::Bool(true), Value::Bool(false)]));
            let Value::List(all) = get("ints") else { panic!() };
            assert_eq!(all[..6], ints(&[0, -1, 255, 65535, -(1 << 31), 1 << 40]));
            assert_eq!(all[6..8], [Value::BigInt(1 << 64), Value::BigInt(-(1 << 100))]);
            assert!(matches!(&all[8], Value::Opaque { class, .. } if class == "builtins.int"));
            assert_eq!(get("floats"), Value::List([0.5, -1e300, f64::INFINITY].map(Value::Float).to_vec()));
            assert_eq!(get("text"), Value::Str("naïve \u{2603}\n\\u0041 \u{1f600}".into()));
            assert_eq!(get("bytes"), Value::Bytes(b"\x00\xff'\n".to_vec()));
            assert_eq!((get("set"), get("frozen")), (Value::Set(ints(&[3])), Value::Set(ints(&[4]))));
            let entries = [("a", 1), ("b", 2)].map(|(key, value)| (Value::Str(key.into()), Value::Int(value)));
            assert_eq!(get("ordered"), Value::Dict(entries.to_vec()));
            assert_eq!(get("shared"), Value::List(vec![Value::List(ints(&[1, 2])); 2]));
            assert_eq!(get("scalars"), Value::Tuple(vec![Value::Float(0.5), Value::Int(-3), Value::Bool(true)]));
            assert!(matches!(get("complex"), Value::Opaque { class, .. } if class == "builtins.complex"));
            assert_arrays(&value);
        }
        assert!(matches!(read_pickle(&file("loop.pkl")), Ok(Value::List(items)) if matches!(items[0], Value::Opaque { .. })));
    }

    fn assert_arrays(value: &Value) {
        let check = |key: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>| {
            let expected = RawArray { dtype: dtype.into(), shape: shape.into(), bytes };
            assert_eq!(value.get(key), Some(&Value::Array(expected)), "{key}");
        };
        check("array", "f4", &[2, 3], [1.5_f32, -2., 3., 4., 5., 6.].iter().flat_map(|x| x.to_le_bytes()).collect());
        check("big", "i2", &[3], [1_i16, 2, 258].iter().flat_map(|x| x.to_le_bytes()).collect());
        check("fortran", "i8", &[2, 3], (0_i64..6).flat_map(i64::to_le_bytes).collect());
        let Some(Value::Opaque { class, args, .. }) = value.get("names") else { panic!() };
        assert_eq!((class.as_str(), args[0].text()), ("numpy.ndarray", Some("U2")));
    }

    /// Text opcodes that Python 3 no longer writes.
    #[test]
    fn python_2_literals_and_instances() {
        let list = |items: Vec<Value>| Value::List(items);
        let text = |text: &str| Value::Str(text.into());
        assert_eq!(read_pickle(b"(lp0\nS'a\\n\\x41\\'\\101'\np1\naI01\naI7\naL-5L\na.").unwrap(), {
            list(vec![text("a\nA'A"), Value::Bool(true), Value::Int(7), Value::Int(-5)])
        });
        assert_eq!(read_pickle(b"(lp0\nS\"\\xff\"\naVx\\u0041\xe9\naF1e-3\na.").unwrap(), {
            list(vec![Value::Bytes(vec![0xff]), text("xAé"), Value::Float(1e-3)])
        });
        for instance in [&b"\x80\x02(I1\niold\nClass\n."[..], b"\x80\x02(cold\nClass\nI1\no."] {
            let expected = Value::Opaque { class: "old.Class".into(), args: vec![Value::Int(1)], state: vec![] };
            assert_eq!(read_pickle(instance).unwrap(), expected);
        }
        let pairs = b"\x80\x02ccollections\nOrderedDict\n((lp0\n(lp1\nI1\naI2\naatR.";
        assert_eq!(read_pickle(pairs).unwrap(), Value::Dict(vec![(Value::Int(1), Value::Int(2))]));
    }

    #[test]
    fn other_formats_are_recognized() {
        let mut safetensors = 2_u64.to_le_bytes().to_vec();
        safetensors.extend(b"{}");
        for (bytes, word) in [
            (&b""[..], "empty"),
            (b"<!DOCTYPE html><html>404</html>", "web page"),
            (b"{\"a\": 1}", "JSON"),
            (b"Not Found", "text"),
            (b"\x7fELF\x02\x01\x01", "ELF"),
            (b"\x1f\x8b\x08\x00", "gzip"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (&safetensors, "safetensors"),
            (b"\x01\x02\x03", "bytes 01 02 03"),
        ] {
            for error in [read_torch_bytes(bytes).unwrap_err(), read_pickle(bytes).unwrap_err()] {
                assert!(matches!(&error, PickleError::NotAPickle(what) if what.contains(word)), "{word}: {error}");
            }
        }
        let exported = b"PK\x03\x04\x00net/data/weights\x00net/archive_format\x00";
        assert!(matches!(read_torch_bytes(exported), Err(PickleError::Exported)));
        assert!(matches!(read_extra(exported, "ssdkd.json"), Err(PickleError::Exported)));
        assert!(matches!(read_pickle(b"\x80\x02\x82\x01."), Err(PickleError::Unsupported(what)) if what.contains("EXT")));
        assert!(matches!(read_pickle(b"\x80\x06."), Err(PickleError::Unsupported(what)) if what.contains("protocol 6")));
        assert!(matches!(read_pickle(b"\x80\x02\xfe."), Err(PickleError::Damaged(what)) if what.contains("0xfe")));
    }

    #[test]
    fn every_truncation_is_noticed() {
        for name in ["plain.pth", "deflated.pth", "legacy.pth"] {
            let bytes = file(name);
            for length in 0..bytes.len() {
                let error = read_torch_bytes(&bytes[..length]).unwrap_err();
                assert!(length < 4 || matches!(error, PickleError::Truncated(_)), "{name} cut to {length}: {error}");
            }
        }
        for name in ["cifar_py2.pkl", "misc_0.pkl", "misc_4.pkl"] {
            let bytes = file(name);
            for length in 3..bytes.len() {
                let error = read_pickle(&bytes[..length]).unwrap_err();
                assert!(matches!(error, PickleError::Truncated(_)), "{name} cut to {length}: {error}");
            }
        }
    }

    #[test]
    fn damaged_data_is_noticed() {
        let mut bytes = file("plain.pth");
        let data = ramp(5).to_le_bytes();
        let at = bytes.windows(4).position(|window| window == data).unwrap();
        bytes[at] ^= 1;
        assert!(matches!(read_torch_bytes(&bytes), Err(PickleError::Damaged(what)) if what.contains("archive/data/")));
    }

    /// An old-format file with one tensor over a storage of six floats.
    fn one_tensor(offset: i64, shape: &[i64], strides: &[i64]) -> Result<Value> {
        fn ints(values: &[i64]) -> Vec<u8> {
            let each = values.iter().flat_map(|value| [b"\x8a\x08".to_vec(), value.to_le_bytes().to_vec()].concat());
            [b"(".to_vec(), each.collect(), b"t".to_vec()].concat()
        }
        let legacy = file("legacy_view.pth");
        let start = unpickle_end(&legacy, 3);
        let storage = b"\x80\x02ctorch._utils\n_rebuild_tensor\n((U\x07storagectorch\nFloatStorage\nU\x0277U\x03cpuK\x06tQ";
        let offset = [b"\x8a\x08".to_vec(), offset.to_le_bytes().to_vec()].concat();
        let tensor = [&storage[..], &offset, &ints(shape), &ints(strides), b"tR."].concat();
        let tail = &legacy[unpickle_end(&legacy, 4)..];
        read_torch_bytes(&[&legacy[..start], &tensor, tail].concat())
    }

    /// Where the first `count` pickles of a file end.
    fn unpickle_end(bytes: &[u8], count: usize) -> usize {
        (0..count).fold(0, |start, _| unpickle(bytes, start, &mut Budget::for_file(bytes.len())).unwrap().end)
    }

    #[test]
    fn tensors_must_fit_their_storage() {
        let shape = |result: Result<Value>| match result {
            Ok(Value::Tensor(tensor)) => tensor.shape,
            other => panic!("{other:?}"),
        };
        assert_eq!(shape(one_tensor(0, &[2, 3], &[3, 1])), [2, 3]);
        assert_eq!(shape(one_tensor(5, &[1], &[i64::MAX])), [1]);
        assert_eq!(shape(one_tensor(99, &[0, i64::MAX], &[i64::MAX, 1])), [0, i64::MAX as usize]);
        for (offset, sizes, strides) in [
            (1, vec![2, 3], vec![3, 1]),
            (6, vec![1], vec![1]),
            (i64::MAX, vec![1], vec![1]),
            (0, vec![2], vec![i64::MAX]),
            (0, vec![i64::MAX, i64::MAX], vec![i64::MAX, i64::MAX]),
        ] {
            let result = one_tensor(offset, &sizes, &strides);
            assert!(matches!(result, Err(PickleError::OutOfStorage { .. })), "{result:?}");
        }
        for sizes in [vec![1 << 30], vec![1 << 62], vec![i64::MAX, i64::MAX]] {
            let result = one_tensor(0, &sizes, &vec![0; sizes.len()]);
            assert!(matches!(result, Err(PickleError::TooLarge(_))), "{result:?}");
        }
        for (sizes, strides) in [(vec![-1], vec![1]), (vec![1], vec![-1]), (vec![1, 1], vec![1]), (vec![1; 65], vec![1; 65])] {
            assert!(matches!(one_tensor(0, &sizes, &strides), Err(PickleError::Damaged(_))));
        }
    }

    #[test]
    fn small_files_cannot_ask_for_much() {
        // Forty tuples of twice the one before: 2^40 values.
        let doubling = [b"\x80\x02N".to_vec(), b"2\x86".repeat(40), b".".to_vec()].concat();
        assert!(matches!(read_pickle(&doubling), Err(PickleError::TooLarge(_)) | Err(PickleError::TooDeep)));
        let deep = [b"\x80\x02N".to_vec(), b"\x85".repeat(100_000), b".".to_vec()].concat();
        assert_eq!(read_pickle(&deep).unwrap_err(), PickleError::TooDeep);
        // A megabyte of text, mentioned a thousand times.
        let text = [&b"X\x00\x00\x10\x00"[..], &b"a".repeat(1 << 20), b"q\x01"].concat();
        let repeated = [b"\x80\x02]".to_vec(), text, b"0(".to_vec(), b"h\x01".repeat(1000), b"e.".to_vec()].concat();
        assert!(matches!(read_pickle(&repeated), Err(PickleError::TooLarge(_))));
        assert!(matches!(read_pickle(b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\xffab."), Err(PickleError::Truncated(_))));
        assert!(matches!(read_pickle(b"\x80\x02B\xff\xff\xff\xffab."), Err(PickleError::Truncated(_))));
    }

    /// Bytes that a value holds outside of its own frame, roughly.
    fn footprint(value: &Value) -> usize {
        let many = |values: &[Value]| values.iter().map(footprint).sum::<usize>();
        size_of::<Value>()
            + match value {
                Value::Str(text) | Value::Global(text) => text.len(),
                Value::Bytes(bytes) => bytes.len(),
                Value::List(items) | Value::Tuple(items) | Value::Set(items) => many(items),
                Value::Dict(entries) => entries.iter().map(|(key, value)| footprint(key) + footprint(value)).sum(),
                Value::Tensor(tensor) => tensor.bytes.len() + tensor.shape.len() * 8,
                Value::Array(array) => array.bytes.len() + array.shape.len() * 8,
                Value::Opaque { class, args, state } => class.len() + many(args) + many(state),
                _ => 0,
            }
    }

    /// Marks all checksums of a zip archive as not recorded, so that changes reach the pickle inside.
    fn without_checksums(mut bytes: Vec<u8>) -> Vec<u8> {
        for at in 0..bytes.len().saturating_sub(20) {
            if bytes[at..].starts_with(b"PK\x01\x02") {
                bytes[at + 16..at + 20].fill(0);
            }
        }
        bytes
    }

    fn mutated(mut bytes: Vec<u8>, random: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
        const TELLING: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'(', b'.', b'R', b'b', b'h', b'2', 0x93];
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(6) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = TELLING[random(TELLING.len())],
                2 => bytes[at] = random(256) as u8,
                3 => {
                    let end = bytes.len().min(at + 1 + random(8));
                    bytes[at..end].fill(0xff);
                }
                4 => {
                    let end = bytes.len().min(at + 1 + random(8));
                    bytes.drain(at..end);
                }
                _ => bytes.truncate(at.max(1)),
            }
            if bytes.is_empty() {
                break;
            }
        }
        bytes
    }

    /// Whatever happens to a file, reading it returns, and what it returns stays in proportion.
    #[test]
    fn mutations_neither_panic_nor_allocate_much() {
        let mut names: Vec<_> = std::fs::read_dir(FILES).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let files: Vec<Vec<u8>> = names.iter().map(|name| without_checksums(file(name.to_str().unwrap()))).collect();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as usize % below.max(1)
        };
        let mut read = 0;
        for round in 0..20_000 {
            let bytes = mutated(files[round % files.len()].clone(), &mut random);
            for value in [read_torch_bytes(&bytes), read_pickle(&bytes)].into_iter().flatten() {
                let limit = (16 << 20) + 8 * bytes.len() + size_of::<Value>() * (64 + 4 * bytes.len());
                assert!(footprint(&value) < limit, "round {round}");
                let _ = state_dict(value);
                read += 1;
            }
        }
        // The changes are small, so a good part must still be readable: proof that they reach the deeper layers.
        assert!(read > 1000, "{read}");
    }
}
