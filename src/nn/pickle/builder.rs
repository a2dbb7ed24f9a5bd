//! From nodes to a tree of values, where every copy is paid for.

use super::machine::raw_bytes;
use super::*;

/// Bytes of each storage, by key. `'s` is the file.
pub(super) type Storages<'s> = HashMap<Rc<str>, Cow<'s, [u8]>>;

/// Turns nodes into values.
struct Builder<'p, 'a> {
    pickled: &'p Pickled<'a>,
    storages: &'p Storages<'p>,
    budget: &'p mut Budget,
    /// Nodes that enclose the current one; meeting one again means that it contains itself.
    open: HashSet<Id>,
}

pub(super) fn build(pickled: &Pickled<'_>, storages: &Storages<'_>, budget: &mut Budget) -> Result<Value> {
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
        // The caller keeps a copy of the shape. Beside a dimension of 0, overflow of the others must not be an error.
        budget.pay_bytes(size_of_val(self.shape), "its shapes")?;
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
