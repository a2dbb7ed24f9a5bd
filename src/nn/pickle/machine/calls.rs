//! The table of harmless constructors, and the text forms of values.

use super::*;

impl<'a> Machine<'a, '_> {
    /// Python 2 passes the entries as a list of pairs.
    pub(super) fn ordered_dict(&mut self, pairs: Id) -> Result<Option<Node<'a>>> {
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

    pub(super) fn set(&mut self, items: Id) -> Result<Option<Node<'a>>> {
        let (Node::List(items) | Node::Tuple(items) | Node::Set(items)) = self.node(items) else {
            return Ok(None);
        };
        let items = items.clone();
        self.budget.pay_bytes(items.len() * size_of::<Id>(), "its sets")?;
        Ok(Some(Node::Set(items)))
    }

    /// Protocols before 3 have no bytes: Python 3 writes them as Latin-1 text to be encoded back.
    pub(super) fn encode(&mut self, text: Id, encoding: Id) -> Result<Option<Node<'a>>> {
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
    pub(super) fn reconstructor(&mut self, class: Id, args: &[Id]) -> Result<Option<Node<'a>>> {
        let Node::Global(class) = self.node(class) else {
            return Ok(None);
        };
        let class = Rc::clone(class);
        let args = self.add(Node::Tuple(args.to_vec()))?;
        Ok(Some(Node::Opaque(Box::new(Object { class, args, state: Vec::new() }))))
    }

    /// A tensor with Python attributes wraps the call that makes the plain tensor. Only those calls are followed, so this
    /// cannot recurse.
    pub(super) fn tensor_subclass(&mut self, function: Id, args: Id) -> Result<Option<Id>> {
        match self.node(function) {
            Node::Global(name) if name.starts_with("torch._utils._rebuild_") => {
                let id = self.call(function, args)?;
                Ok(matches!(self.node(id), Node::Tensor(_)).then_some(id))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn tensor(&mut self, storage: Id, offset: Id, shape: Id, strides: Id, dtype: Option<Id>) -> Result<Node<'a>> {
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
    pub(super) fn check_flags(&self, metadata: Option<&Id>) -> Result<()> {
        match metadata.map(|id| self.node(*id)) {
            Some(Node::Dict(flags)) if flags.iter().any(|(_, flag)| !matches!(self.node(*flag), Node::Bool(false))) => {
                Err(PickleError::Unsupported("a lazily conjugated or negated tensor".into()))
            }
            _ => Ok(()),
        }
    }

    /// `numpy.dtype("u1", …)`; a name may carry its byte order in front.
    pub(super) fn numpy_dtype(&self, name: Id) -> Option<Node<'a>> {
        let name = self.text(name).filter(|name| name.len() <= MAX_NAME)?;
        let plain = name.trim_start_matches(['<', '>', '|', '=']).to_owned();
        Some(Node::NumpyDtype(Box::new(NumpyDtype { name: plain, big_endian: name.starts_with('>') })))
    }

    /// State of a dtype: version, byte order, then what only structured types have.
    pub(super) fn dtype_state(&mut self, target: Id, state: Id) {
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
    pub(super) fn array_state(&mut self, state: Id) -> Result<Node<'a>> {
        let parts = match self.node(state) {
            Node::Tuple(parts) => parts.as_slice(),
            _ => &[],
        };
        let ([_, shape, dtype, fortran, data] | [shape, dtype, fortran, data]) = *parts else {
            return self.fail("an array has no state");
        };
        let fortran = matches!(self.node(fortran), Node::Bool(true) | Node::Int(1));
        Ok(Node::Array(Some(Box::new(ArrayPlan { dtype, shape: self.sizes(shape)?, fortran, data }))))
    }

    /// How protocol 5 writes arrays. Order `K` (axes permuted at will) stays opaque.
    pub(super) fn array_from_buffer(&mut self, data: Id, dtype: Id, shape: Id, order: Id) -> Result<Option<Node<'a>>> {
        let fortran = match self.text(order) {
            Some("C") => false,
            Some("F") => true,
            _ => return Ok(None),
        };
        Ok(Some(Node::Array(Some(Box::new(ArrayPlan { dtype, shape: self.sizes(shape)?, fortran, data })))))
    }

    /// A NumPy number, such as an accuracy computed with NumPy, as the Python number it equals.
    pub(super) fn numpy_scalar(&self, dtype: Id, data: Id) -> Option<Node<'a>> {
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

pub(super) fn int_node<'a>(value: i128) -> Node<'a> {
    match i64::try_from(value) {
        Ok(small) => Node::Int(small),
        Err(_) => Node::BigInt(Box::new(value)),
    }
}

/// Python allows lone surrogates in text; Rust does not, so such text stays bytes rather than being altered.
pub(super) fn utf8_node(bytes: &[u8]) -> Node<'_> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Node::Str(Cow::Borrowed(text)),
        Err(_) => Node::Bytes(Cow::Borrowed(bytes)),
    }
}

/// Python 2's `str` is text or data; ASCII is taken for text, and [`raw_bytes`] undoes that where data is wanted.
pub(super) fn python2_node(bytes: Cow<'_, [u8]>) -> Node<'_> {
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
pub(in super::super) fn raw_bytes<'n>(node: &'n Node<'_>) -> Option<&'n [u8]> {
    match node {
        Node::Bytes(bytes) => Some(bytes),
        Node::Str(text) if text.is_ascii() => Some(text.as_bytes()),
        _ => None,
    }
}

/// Inside of a Python 2 string literal (`string-escape` codec). `None` if an escape is cut short.
pub(super) fn unescape_string(mut rest: &[u8]) -> Option<Vec<u8>> {
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
pub(super) fn unescape_unicode(mut rest: &[u8]) -> Option<String> {
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

pub(super) fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}
