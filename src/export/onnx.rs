//! ONNX: the few messages of its format that a network needs, declared here for `prost`, and the operators of a recorded pass in them.
//!
//! Source: the format's `onnx.proto3` (field numbers) and `Operators.md` (operators of opset 17).

use crate::error::{Error, Result};
use crate::metrics::version;
use crate::nn::graph::{Graph, Node as Recorded, Operand};
use crate::nn::weights::bytes_of;
use prost::Message;
use tch::{Kind, Tensor};

/// Version of the operators. onnxruntime has known it since 1.12.
pub const OPSET: i64 = 17;
/// Version of the format that came with it.
const IR_VERSION: i64 = 8;

/// A file.
#[derive(Clone, PartialEq, Message)]
pub struct Model {
    /// Version of the format.
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    /// The program that wrote it.
    #[prost(string, tag = "2")]
    pub producer_name: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub producer_version: String,
    /// The network.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// Versions of the operators.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    /// Free text.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<Property>,
}

/// Version of a set of operators; the unnamed one is ONNX's own.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSet {
    /// The set.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Its version.
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A text by name.
#[derive(Clone, PartialEq, Message)]
pub struct Property {
    /// Name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Text.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A network: operators in an order in which they can be computed.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    /// Operators.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Tensors with values.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// What goes in.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfo>,
    /// What comes out.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfo>,
}

/// An operator.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// Names of its inputs; an empty one is left out.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of its outputs.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Its own name.
    #[prost(string, tag = "3")]
    pub name: String,
    /// What it computes.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Constants of it.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
}

/// A constant of an operator. A 0 is written too: optional fields.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A real number.
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// A whole number.
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// A text.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub s: Option<Vec<u8>>,
    /// Whole numbers.
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    /// Which of these it is.
    #[prost(int32, tag = "20")]
    pub kind: i32,
}

/// A tensor with values, little-endian.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    /// Shape.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// Element type: [`FLOAT`] or [`INT64`].
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// Name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// Values in row-major order.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
}

/// f32, in [`TensorProto::data_type`].
pub const FLOAT: i32 = 1;
/// i64, there.
pub const INT64: i32 = 7;

/// A value that goes in or comes out.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfo {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

/// A type; all are tensors here.
#[derive(Clone, PartialEq, Message)]
pub struct Type {
    /// A tensor's.
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

/// Type of a tensor.
#[derive(Clone, PartialEq, Message)]
pub struct TensorType {
    /// Element type.
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    /// Shape.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShape>,
}

/// A shape.
#[derive(Clone, PartialEq, Message)]
pub struct TensorShape {
    /// Lengths.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// A length: a number, or the name of one that is known later.
#[derive(Clone, PartialEq, Message)]
pub struct Dimension {
    /// Number.
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    /// Name.
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

/// What goes in and comes out, beside the batch.
pub struct Interface<'a> {
    /// `[c, h, w]`.
    pub image: &'a [i64],
    /// `[k, …]`.
    pub logits: &'a [i64],
    /// Text to carry along.
    pub metadata: &'a [(&'a str, String)],
}

/// Name of what goes in.
pub const IMAGES: &str = "images";
/// Name of what comes out.
pub const LOGITS: &str = "logits";

/// The model of a recorded pass; `state_dict` has the entries that it names.
///
/// # Errors
/// An operator, or a use of one, that has no form here: named.
pub fn model(graph: &Graph, state_dict: &[(String, Tensor)], interface: &Interface<'_>) -> Result<Model> {
    let mut writer = Writer { output: &graph.output, state_dict, graph: GraphProto { name: "network".into(), ..Default::default() } };
    graph.nodes.iter().try_for_each(|node| writer.translate(node))?;
    let value = |name: &str, rest: &[i64]| {
        let batch = Dimension { dim_param: Some("batch".into()), dim_value: None };
        let rest = rest.iter().map(|&length| Dimension { dim_value: Some(length), dim_param: None });
        let shape = Some(TensorShape { dim: std::iter::once(batch).chain(rest).collect() });
        ValueInfo { name: name.into(), r#type: Some(Type { tensor_type: Some(TensorType { elem_type: FLOAT, shape }) }) }
    };
    let graph = GraphProto { input: vec![value(IMAGES, interface.image)], output: vec![value(LOGITS, interface.logits)], ..writer.graph };
    Ok(Model {
        ir_version: IR_VERSION,
        producer_name: "ssdkd".into(),
        producer_version: version(),
        graph: Some(graph),
        opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
        metadata_props: interface.metadata.iter().map(|(key, value)| Property { key: (*key).into(), value: value.clone() }).collect(),
    })
}

/// A file's bytes.
pub fn encode(model: &Model) -> Vec<u8> {
    model.encode_to_vec()
}

/// A file from its bytes.
///
/// # Errors
/// What is none.
pub fn decode(bytes: &[u8]) -> Result<Model> {
    Model::decode(bytes).map_err(|e| Error::refused(format!("no ONNX model: {e}")))
}

/// An attribute of [`Attribute`]'s three kinds; the numbers are the format's.
fn whole(name: &str, i: i64) -> Attribute {
    Attribute { name: name.into(), i: Some(i), kind: 2, ..Attribute::default() }
}

fn real(name: &str, f: f64) -> Attribute {
    Attribute { name: name.into(), f: Some(f as f32), kind: 1, ..Attribute::default() }
}

fn text(name: &str, s: &str) -> Attribute {
    Attribute { name: name.into(), s: Some(s.into()), kind: 3, ..Attribute::default() }
}

fn list(name: &str, ints: Vec<i64>) -> Attribute {
    Attribute { name: name.into(), ints, kind: 7, ..Attribute::default() }
}

/// Zeros before and after each of (h, w), from libtorch's one number for both.
fn both_ends(padding: &[i64]) -> Vec<i64> {
    [padding, padding].concat()
}

struct Writer<'a> {
    output: &'a str,
    state_dict: &'a [(String, Tensor)],
    graph: GraphProto,
}

/// The operands of one operator.
struct Call<'a> {
    node: &'a Recorded,
}

impl Call<'_> {
    fn refused(&self, problem: &str) -> Error {
        Error::refused(format!("{} {problem} has no form in ONNX here", self.node.operator))
            .with_hint("export --to torchscript takes every network")
    }

    fn at(&self, i: usize) -> &Operand {
        self.node.inputs.get(i).unwrap_or(&Operand::Missing(()))
    }

    fn int(&self, i: usize) -> Result<i64> {
        match self.at(i) {
            Operand::Int(number) => Ok(*number),
            other => Err(self.refused(&format!("with {other:?} for a whole number"))),
        }
    }

    fn real(&self, i: usize) -> Result<f64> {
        match self.at(i) {
            Operand::Int(number) => Ok(*number as f64),
            Operand::Real(number) => Ok(*number),
            other => Err(self.refused(&format!("with {other:?} for a number"))),
        }
    }

    fn ints(&self, i: usize) -> Result<Vec<i64>> {
        let number = |item: &Operand| if let Operand::Int(number) = item { Some(*number) } else { None };
        let ints = if let Operand::List(items) = self.at(i) { items.iter().map(number).collect() } else { None };
        ints.ok_or_else(|| self.refused(&format!("with {:?} for a list of whole numbers", self.at(i))))
    }

    /// Of (h, w); libtorch takes one number for both.
    fn pair(&self, i: usize) -> Result<Vec<i64>> {
        let ints = self.ints(i)?;
        Ok(if let [one] = ints[..] { vec![one, one] } else { ints })
    }

    /// Refuses all but one value of an operand.
    fn is(&self, i: usize, wanted: &Operand) -> Result<()> {
        if self.at(i) == wanted { Ok(()) } else { Err(self.refused(&format!("with {:?} where {wanted:?} is known", self.at(i)))) }
    }
}

impl Writer<'_> {
    fn translate(&mut self, node: &Recorded) -> Result<()> {
        let call = Call { node };
        match node.operator.as_str() {
            "aten::_convolution" => {
                call.is(6, &Operand::Bool(false))?;
                self.convolution(&call, 8)
            }
            "aten::conv2d" => self.convolution(&call, 6),
            "aten::batch_norm" => {
                call.is(5, &Operand::Bool(false))?;
                self.emit("BatchNormalization", &call, &[0, 1, 2, 3, 4], vec![real("epsilon", call.real(7)?)])
            }
            "aten::relu" => self.emit("Relu", &call, &[0], vec![]),
            "aten::clamp_max" => {
                let most = self.constant(&call, "max", &Tensor::from(call.real(1)? as f32));
                let x = self.operand(&call, 0)?;
                self.emit_named("Clip", &call, vec![x, String::new(), most], vec![])
            }
            "aten::add" => {
                call.is(2, &Operand::Int(1))?;
                self.emit("Add", &call, &[0, 1], vec![])
            }
            "aten::max_pool2d" => {
                call.is(5, &Operand::Bool(false))?;
                let (kernel, stride, dilation) = (call.pair(1)?, call.pair(2)?, call.pair(4)?);
                let pads = both_ends(&call.pair(3)?);
                let attributes =
                    vec![list("kernel_shape", kernel), list("strides", stride), list("pads", pads), list("dilations", dilation)];
                self.emit("MaxPool", &call, &[0], attributes)
            }
            "aten::adaptive_avg_pool2d" => {
                call.is(1, &Operand::List(vec![Operand::Int(1), Operand::Int(1)]))?;
                self.emit("GlobalAveragePool", &call, &[0], vec![])
            }
            "aten::flatten" => {
                call.is(2, &Operand::Int(-1))?;
                call.is(1, &Operand::Int(1))?;
                self.emit("Flatten", &call, &[0], vec![whole("axis", 1)])
            }
            "aten::linear" => self.emit("Gemm", &call, &[0, 1, 2], vec![whole("transB", 1)]),
            "aten::cat" => {
                let Operand::List(items) = call.at(0) else { return Err(call.refused("of no list")) };
                let names = items.iter().map(|item| self.named(&call, item)).collect::<Result<_>>()?;
                self.emit_named("Concat", &call, names, vec![whole("axis", call.int(1)?)])
            }
            "aten::constant_pad_nd" => self.padding(&call),
            "aten::expand_as" => {
                let [x, like] = [self.operand(&call, 0)?, self.operand(&call, 1)?];
                let shape = self.step("Shape", &call, vec![like], vec![]);
                self.emit_named("Expand", &call, vec![x, shape], vec![])
            }
            "aten::upsample_bilinear2d" => self.resizing(&call),
            _ => Err(call.refused("")),
        }
    }

    fn convolution(&mut self, call: &Call<'_>, groups: usize) -> Result<()> {
        let Operand::Entry { entry } = call.at(1) else { return Err(call.refused("with a weight that is computed")) };
        let kernel = self.tensor(call, entry)?.size()[2..].to_vec();
        let attributes = vec![
            list("kernel_shape", kernel),
            list("strides", call.pair(3)?),
            list("pads", both_ends(&call.pair(4)?)),
            list("dilations", call.pair(5)?),
            whole("group", call.int(groups)?),
        ];
        let inputs: &[usize] = if *call.at(2) == Operand::Missing(()) { &[0, 1] } else { &[0, 1, 2] };
        self.emit("Conv", call, inputs, attributes)
    }

    /// libtorch lists left, right, top, bottom; ONNX the begins of all axes, then their ends.
    fn padding(&mut self, call: &Call<'_>) -> Result<()> {
        let [left, right, top, bottom] = call.ints(1)?[..] else { return Err(call.refused("of other axes than the last two")) };
        let pads = self.constant(call, "pads", &Tensor::from_slice(&[0, 0, top, left, 0, 0, bottom, right]));
        let value = self.constant(call, "value", &Tensor::from(call.real(2)? as f32));
        let x = self.operand(call, 0)?;
        self.emit_named("Pad", call, vec![x, pads, value], vec![text("mode", "constant")])
    }

    /// The new size is (batch, channels) as they are and (h, w) as recorded. One pixel gives itself everywhere, as libtorch has it.
    fn resizing(&mut self, call: &Call<'_>) -> Result<()> {
        call.is(2, &Operand::Bool(false))?;
        let x = self.operand(call, 0)?;
        let whole_shape = self.step("Shape", call, vec![x.clone()], vec![]);
        let [from, to, size] = [("from", vec![0]), ("to", vec![2]), ("size", call.ints(1)?)]
            .map(|(name, values)| self.constant(call, name, &Tensor::from_slice(&values)));
        let kept = self.step("Slice", call, vec![whole_shape, from, to], vec![]);
        let sizes = self.step("Concat", call, vec![kept, size], vec![whole("axis", 0)]);
        let attributes = vec![text("mode", "linear"), text("coordinate_transformation_mode", "half_pixel")];
        self.emit_named("Resize", call, vec![x, String::new(), String::new(), sizes], attributes)
    }

    /// One ONNX operator for one of libtorch's, of the operands at these places.
    fn emit(&mut self, op_type: &str, call: &Call<'_>, operands: &[usize], attribute: Vec<Attribute>) -> Result<()> {
        let input = operands.iter().map(|i| self.operand(call, *i)).collect::<Result<_>>()?;
        self.emit_named(op_type, call, input, attribute)
    }

    fn emit_named(&mut self, op_type: &str, call: &Call<'_>, input: Vec<String>, attribute: Vec<Attribute>) -> Result<()> {
        let output = self.value(&call.node.output);
        self.push(op_type, input, output, attribute);
        Ok(())
    }

    /// An operator on the way to one of libtorch's; gives the name of its output.
    fn step(&mut self, op_type: &str, call: &Call<'_>, input: Vec<String>, attribute: Vec<Attribute>) -> String {
        let output = format!("{}.{}", self.value(&call.node.output), op_type.to_lowercase());
        self.push(op_type, input, output.clone(), attribute);
        output
    }

    fn push(&mut self, op_type: &str, input: Vec<String>, output: String, attribute: Vec<Attribute>) {
        let name = format!("{op_type}_{}", self.graph.node.len());
        self.graph.node.push(Node { input, output: vec![output], name, op_type: op_type.into(), attribute });
    }

    fn operand(&mut self, call: &Call<'_>, i: usize) -> Result<String> {
        self.named(call, call.at(i))
    }

    fn named(&mut self, call: &Call<'_>, operand: &Operand) -> Result<String> {
        match operand {
            Operand::Value { value } => Ok(self.value(value)),
            Operand::Entry { entry } => {
                let tensor = self.tensor(call, entry)?;
                self.initialise(entry.clone(), &tensor);
                Ok(entry.clone())
            }
            other => Err(call.refused(&format!("of {other:?}"))),
        }
    }

    /// Values are numbered; what comes out has the name that users look for.
    fn value(&self, name: &str) -> String {
        match name {
            _ if name == self.output => LOGITS.into(),
            IMAGES => IMAGES.into(),
            _ => format!("value_{name}"),
        }
    }

    fn tensor(&self, call: &Call<'_>, key: &str) -> Result<Tensor> {
        let found = self.state_dict.iter().find(|(known, _)| known == key);
        found.map(|(_, tensor)| tensor.shallow_clone()).ok_or_else(|| call.refused(&format!("of `{key}`, which is not in the state_dict,")))
    }

    fn constant(&mut self, call: &Call<'_>, name: &str, tensor: &Tensor) -> String {
        let name = format!("{}.{name}", self.value(&call.node.output));
        self.initialise(name.clone(), tensor);
        name
    }

    fn initialise(&mut self, name: String, tensor: &Tensor) {
        if self.graph.initializer.iter().any(|known| known.name == name) {
            return;
        }
        let data_type = if tensor.kind() == Kind::Int64 { INT64 } else { FLOAT };
        self.graph.initializer.push(TensorProto { dims: tensor.size(), data_type, name, raw_data: bytes_of(tensor) });
    }
}
