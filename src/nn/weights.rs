//! Weights files: safetensors in and out, PyTorch's `.pth`/`.pt` in.

use super::Manifest;
use super::pickle::{self, Dtype};
use crate::error::{Error, Result};
use crate::files;
use safetensors::{SafeTensors, tensor::TensorView};
use std::collections::HashMap;
use std::path::Path;
use tch::{Kind, Tensor};

/// A state_dict read from a file, in the file's order, with the text a safetensors file carries along.
pub struct WeightsFile {
    /// Key and tensor.
    pub tensors: Vec<(String, Tensor)>,
    /// Free text by name; empty for PyTorch files.
    pub metadata: HashMap<String, String>,
}

/// Reads a weights file; the format is told by its contents, not its name. Nothing in it is executed.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn read(path: &Path) -> Result<WeightsFile> {
    from_bytes(&files::read(path)?, path)
}

fn from_bytes(bytes: &[u8], path: &Path) -> Result<WeightsFile> {
    if looks_like_safetensors(bytes) {
        return from_safetensors(bytes).map_err(|problem| Error::file(path, problem).with_hint("copy or download the file again"));
    }
    let dict = pickle::read_torch_bytes(bytes).and_then(pickle::state_dict).map_err(|e| Error::file(path, e.to_string()))?;
    let tensors = dict.into_iter().map(|(key, raw)| (key, from_raw(&raw))).collect();
    Ok(WeightsFile { tensors, metadata: HashMap::new() })
}

/// A safetensors file starts with the length of its JSON header, then `{`.
fn looks_like_safetensors(bytes: &[u8]) -> bool {
    bytes.len() > 9 && bytes[8] == b'{' && bytes.first_chunk::<8>().is_some_and(|n| u64::from_le_bytes(*n) < bytes.len() as u64)
}

/// Parses a safetensors file in memory.
pub fn from_safetensors(bytes: &[u8]) -> std::result::Result<WeightsFile, String> {
    let damaged = |e: safetensors::SafeTensorError| format!("damaged safetensors file ({e})");
    let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let order = header.offset_keys();
    let mut tensors = Vec::with_capacity(order.len());
    for key in order {
        let view = file.tensor(&key).map_err(damaged)?;
        let kind = kind_of(view.dtype()).ok_or_else(|| format!("tensor `{key}` has type {:?}, which is not supported", view.dtype()))?;
        let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
        tensors.push((key, Tensor::from_data_size(view.data(), &shape, kind)));
    }
    Ok(WeightsFile { tensors, metadata: header.metadata().clone().unwrap_or_default() })
}

fn kind_of(dtype: safetensors::Dtype) -> Option<Kind> {
    use safetensors::Dtype as D;
    Some(match dtype {
        D::F64 => Kind::Double,
        D::F32 => Kind::Float,
        D::F16 => Kind::Half,
        D::BF16 => Kind::BFloat16,
        D::I64 => Kind::Int64,
        D::I32 => Kind::Int,
        D::I16 => Kind::Int16,
        D::I8 => Kind::Int8,
        D::U8 => Kind::Uint8,
        D::BOOL => Kind::Bool,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> safetensors::Dtype {
    use safetensors::Dtype as D;
    match kind {
        Kind::Double => D::F64,
        Kind::Half => D::F16,
        Kind::BFloat16 => D::BF16,
        Kind::Int64 => D::I64,
        Kind::Int => D::I32,
        Kind::Int16 => D::I16,
        Kind::Int8 => D::I8,
        Kind::Uint8 => D::U8,
        Kind::Bool => D::BOOL,
        _ => D::F32,
    }
}

fn from_raw(raw: &pickle::RawTensor) -> Tensor {
    let kind = match raw.dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::Bool => Kind::Bool,
    };
    let shape: Vec<i64> = raw.shape.iter().map(|&d| d as i64).collect();
    Tensor::from_data_size(&raw.bytes, &shape, kind)
}

/// Values of a tensor in row-major order, little-endian.
pub fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().to_device(tch::Device::Cpu).contiguous();
    let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// What a file says of itself: a safetensors file's metadata, or a traced teacher's manifest under the same names. Nothing where a file
/// of another kind holds none.
///
/// # Errors
/// A file that is not there, damaged, or of no known kind.
pub fn says(path: &Path) -> Result<HashMap<String, String>> {
    let bytes = files::read(path)?;
    if Manifest::is_asked_of(&bytes) {
        return Ok(Manifest::of(&bytes, path)?.map_or_else(Vec::new, |manifest| manifest.says()).into_iter().collect());
    }
    Ok(from_bytes(&bytes, path)?.metadata)
}

/// Tensors as safetensors, with free text beside them.
pub fn to_safetensors(tensors: &[(String, Tensor)], metadata: &[(&str, String)]) -> Result<Vec<u8>> {
    let held: Vec<(&String, Vec<usize>, safetensors::Dtype, Vec<u8>)> = tensors
        .iter()
        .map(|(key, tensor)| (key, tensor.size().iter().map(|&d| d as usize).collect(), dtype_of(tensor.kind()), bytes_of(tensor)))
        .collect();
    let failed = |e: safetensors::SafeTensorError| Error::refused(format!("cannot form a safetensors file: {e}"));
    let views: Vec<(&str, TensorView<'_>)> = held
        .iter()
        .map(|(key, shape, dtype, bytes)| Ok((key.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?)))
        .collect::<Result<_>>()?;
    let metadata: HashMap<String, String> = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    safetensors::serialize(views, Some(metadata)).map_err(failed).and_then(|file| text_in_order(&file))
}

/// The same file with its free text in alphabetical order. The library writes it in the order of a hash map, which differs from
/// process to process: equal runs would write unequal files.
fn text_in_order(file: &[u8]) -> Result<Vec<u8>> {
    let failed = || Error::refused("cannot form a safetensors file: its header is not as expected");
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(failed)?;
    let (header, data) = rest.split_at_checked(u64::from_le_bytes(*length) as usize).ok_or_else(failed)?;
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).map_err(|_| failed())?;
    if let Some(serde_json::Value::Object(text)) = header.get_mut("__metadata__") {
        text.sort_keys();
    }
    let mut header = serde_json::to_vec(&header).map_err(|_| failed())?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header, data].concat())
}

/// Writes tensors as a safetensors file, durably.
pub fn write(path: &Path, tensors: &[(String, Tensor)], metadata: &[(&str, String)]) -> Result<()> {
    files::write(path, &to_safetensors(tensors, metadata)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_a_round_trip_with_their_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = vec![
            ("w".to_owned(), crate::goldens::fill(1, &[2, 3]).transpose(0, 1)),
            ("n".to_owned(), Tensor::from(7i64)),
            ("u".to_owned(), Tensor::from_slice(&[1u8, 2])),
        ];
        let text = ["std", "model", "height", "width"].map(|name| (name, "x".to_owned()));
        write(&path, &tensors, &text).unwrap();
        let back = read(&path).unwrap();
        let raw = std::fs::read(&path).unwrap();
        let header = String::from_utf8_lossy(&raw[8..]);
        assert!(header.contains(r#""height":"x","model":"x","std":"x","width":"x""#), "equal runs write equal files: {header}");
        assert_eq!(back.metadata["model"], "x");
        for (key, tensor) in &tensors {
            let got = &back.tensors.iter().find(|(k, _)| k == key).unwrap().1;
            assert!(got.equal(tensor) && got.kind() == tensor.kind(), "{key}");
        }
    }

    #[test]
    fn a_truncated_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let bytes = to_safetensors(&[("w".into(), Tensor::from_slice(&[1f32; 100]))], &[]).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let text = read(&path).err().unwrap().to_string();
        assert!(text.contains("a.safetensors: damaged safetensors file"), "{text}");
    }
}
