//! The stack machine that a pickle is a program for.

mod calls;

pub(super) use calls::raw_bytes;

use super::*;
use calls::{int_node, python2_node, unescape_string, unescape_unicode, utf8_node};

/// Opcodes of protocols 0 to 5, named as in `Lib/pickletools.py`.
pub(super) mod op {
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
pub(super) fn unpickle<'a>(bytes: &'a [u8], start: usize, budget: &mut Budget) -> Result<Pickled<'a>> {
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

    fn sizes(&mut self, id: Id) -> Result<Vec<usize>> {
        let sizes: Vec<usize> = match self.node(id) {
            Node::Tuple(ids) | Node::List(ids) if ids.len() <= MAX_DIMS => ids.iter().map(|id| self.size(*id)).collect::<Result<_>>()?,
            Node::Tuple(_) | Node::List(_) => return self.fail("a shape has too many dimensions"),
            _ => return self.fail("a shape is no tuple"),
        };
        self.budget.pay_bytes(size_of_val(sizes.as_slice()), "its shapes")?;
        Ok(sizes)
    }
}
