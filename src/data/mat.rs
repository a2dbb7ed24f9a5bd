//! MAT-files of version 5: the numeric arrays that they hold. Nothing in them is run, and no length is believed before it is checked.
//!
//! Source of the format: The MathWorks, *MAT-File Format*, Level 5.

use flate2::read::ZlibDecoder;
use std::io::Read;

/// Bytes before the first element.
const HEADER: usize = 128;
/// Types of elements.
const UINT8: u32 = 2;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
/// Array classes of numbers: double to uint64.
const NUMERIC: std::ops::RangeInclusive<u8> = 6..=15;
/// Bytes that an element may unpack to: SVHN's largest has 225 MB, and a bomb must not eat the node's memory.
const LIMIT: u64 = 1 << 30;

/// A real numeric array.
pub(super) struct Array {
    /// Sizes; the first index runs fastest.
    pub dims: Vec<usize>,
    kind: u32,
    bytes: Vec<u8>,
}

impl Array {
    /// Its values, where they are unsigned bytes.
    pub fn unsigned_bytes(&self) -> Option<&[u8]> {
        (self.kind == UINT8).then_some(&self.bytes)
    }

    /// Its values as numbers, however they are stored.
    pub fn numbers(&self) -> Vec<f64> {
        fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|chunk| value(*chunk)).collect()
        }
        let bytes = &self.bytes;
        match self.kind {
            1 => each(bytes, |b| i8::from_le_bytes(b).into()),
            UINT8 => each(bytes, |b| u8::from_le_bytes(b).into()),
            3 => each(bytes, |b| i16::from_le_bytes(b).into()),
            4 => each(bytes, |b| u16::from_le_bytes(b).into()),
            5 => each(bytes, |b| i32::from_le_bytes(b).into()),
            6 => each(bytes, |b| u32::from_le_bytes(b).into()),
            7 => each(bytes, |b| f32::from_le_bytes(b).into()),
            12 => each(bytes, |b| i64::from_le_bytes(b) as f64),
            13 => each(bytes, |b| u64::from_le_bytes(b) as f64),
            _ => each(bytes, f64::from_le_bytes),
        }
    }
}

/// Bytes of a value of an element type, where it is one of numbers.
fn width(kind: u32) -> Option<usize> {
    Some(match kind {
        1 | UINT8 => 1,
        3 | 4 => 2,
        5..=7 => 4,
        9 | 12 | 13 => 8,
        _ => return None,
    })
}

/// Every real numeric array of a file, by name.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn read(raw: &[u8]) -> Result<Vec<(String, Array)>, String> {
    if raw.starts_with(b"MATLAB 7.3") {
        return Err("a MAT-file of version 7.3 (HDF5); version 5 expected".into());
    }
    match raw.get(..HEADER).and_then(|header| header.last_chunk()) {
        Some([0, 1, b'I', b'M']) => {}
        Some([1, 0, b'M', b'I']) => return Err("a MAT-file of a big-endian machine; save it again on a usual one".into()),
        Some(_) => return Err("no MAT-file of version 5".into()),
        None => return Err(format!("{} bytes; the header of a MAT-file alone has {HEADER}", raw.len())),
    }
    let (mut found, mut rest) = (Vec::new(), &raw[HEADER..]);
    while !rest.is_empty() {
        let (kind, data, after) = element(rest)?;
        match kind {
            MATRIX => found.extend(matrix(data)?),
            COMPRESSED => {
                let mut inner = Vec::new();
                ZlibDecoder::new(data).take(LIMIT).read_to_end(&mut inner).map_err(|e| format!("damaged compressed element ({e})"))?;
                let (kind, data, _) = element(&inner)?;
                found.extend(if kind == MATRIX { matrix(data)? } else { None });
            }
            _ => {}
        }
        rest = after;
    }
    Ok(found)
}

/// Type and data of the first element, and what follows it.
fn element(raw: &[u8]) -> Result<(u32, &[u8], &[u8]), String> {
    let torn = || "an element is cut short".to_owned();
    let word = |at: usize| raw.get(at..at + 4).and_then(|b| b.first_chunk()).map(|b| u32::from_le_bytes(*b)).ok_or_else(torn);
    let first = word(0)?;
    // Up to four bytes lie in the tag itself.
    let (kind, start, size, end) = match first >> 16 {
        0 => {
            let size = word(4)? as usize;
            (first, 8, size, if first == COMPRESSED { 8 + size } else { (8 + size).next_multiple_of(8) })
        }
        size => (first & 0xffff, 4, size as usize, 8),
    };
    if start == 4 && size > 4 {
        return Err(format!("an element of {size} bytes claims to lie in its tag"));
    }
    Ok((kind, raw.get(start..start + size).ok_or_else(torn)?, raw.get(end..).unwrap_or_default()))
}

/// Name and values of an array; `None` for what is none of real numbers.
fn matrix(data: &[u8]) -> Result<Option<(String, Array)>, String> {
    let (_, flags, rest) = element(data)?;
    let (Some(&class), Some(&bits)) = (flags.first(), flags.get(1)) else { return Err("an array has no flags".into()) };
    if !NUMERIC.contains(&class) || bits & 8 != 0 {
        return Ok(None);
    }
    let (_, dims, rest) = element(rest)?;
    let (_, name, rest) = element(rest)?;
    let (kind, values, _) = element(rest)?;
    let name = String::from_utf8_lossy(name).into_owned();
    let dims: Vec<usize> = dims.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b) as usize).collect();
    let size = width(kind).and_then(|width| dims.iter().try_fold(width, |product, &dim| product.checked_mul(dim)));
    if size != Some(values.len()) {
        return Err(format!("`{name}` is {dims:?}, but has {} bytes of type {kind}", values.len()));
    }
    Ok(Some((name, Array { dims, kind, bytes: values.to_vec() })))
}
