//! TensorBoard event files: TFRecord framing (length, masked CRC-32C, data, masked CRC-32C) around `Event` messages.
//!
//! Source of field numbers: tensorflow `core/util/event.proto` and `core/framework/summary.proto`. No live crate writes
//! them without bringing an image stack of its own, so the four messages are declared here for `prost`.

use crate::error::{Error, Result};
use prost::Message;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "4")]
    image: Option<Picture>,
}

#[derive(Clone, PartialEq, Message)]
struct Picture {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    #[prost(int32, tag = "3")]
    colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

/// Writes one event file.
pub struct EventWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl EventWriter {
    /// A new `events.out.tfevents.*` file in `folder`; TensorBoard reads all that are there.
    pub fn create(folder: &Path) -> Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let path = folder.join(format!("events.out.tfevents.{}.{:09}.ssdkd", since.as_secs(), since.subsec_nanos()));
        let file = File::create(&path).map_err(|e| Error::io("create", &path, &e))?;
        let mut writer = Self { path, file: BufWriter::new(file) };
        writer.event(0, Some("brain.Event:2".into()), None)?;
        Ok(writer)
    }

    /// One number.
    pub fn scalar(&mut self, tag: &str, value: f64, step: u64) -> Result<()> {
        self.value(Value { tag: tag.into(), simple_value: Some(value as f32), image: None }, step)
    }

    /// One picture, as PNG of `size` = (width, height).
    pub fn picture(&mut self, tag: &str, png: &[u8], size: (u32, u32), step: u64) -> Result<()> {
        let picture = Picture { height: size.1 as i32, width: size.0 as i32, colorspace: 3, encoded_image_string: png.to_vec() };
        self.value(Value { tag: tag.into(), simple_value: None, image: Some(picture) }, step)
    }

    fn value(&mut self, value: Value, step: u64) -> Result<()> {
        self.event(step, None, Some(Summary { value: vec![value] }))
    }

    fn event(&mut self, step: u64, file_version: Option<String>, summary: Option<Summary>) -> Result<()> {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let data = Event { wall_time, step: step as i64, file_version, summary }.encode_to_vec();
        let length = (data.len() as u64).to_le_bytes();
        let parts = [&length[..], &masked_crc(&length).to_le_bytes(), &data, &masked_crc(&data).to_le_bytes()];
        parts.iter().try_for_each(|part| self.file.write_all(part)).map_err(|e| Error::io("write", &self.path, &e))
    }

    /// Hands everything to the operating system.
    pub fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| Error::io("write", &self.path, &e))
    }
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_framed_and_decode_to_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        writer.scalar("loss", 0.5, 3).unwrap();
        writer.flush().unwrap();
        let raw = std::fs::read(&writer.path).unwrap();
        let mut rest = &raw[..];
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(u32::from_le_bytes(rest[8..12].try_into().unwrap()), masked_crc(&rest[..8]));
            let data = &rest[12..12 + length];
            assert_eq!(u32::from_le_bytes(rest[12 + length..16 + length].try_into().unwrap()), masked_crc(data));
            events.push(Event::decode(data).unwrap());
            rest = &rest[16 + length..];
        }
        assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
        let value = &events[1].summary.as_ref().unwrap().value[0];
        assert_eq!((events[1].step, value.tag.as_str(), value.simple_value), (3, "loss", Some(0.5)));
    }

    /// CRC-32C of 32 zero bytes (RFC 3720, appendix B.4), masked as TFRecord masks it.
    #[test]
    fn the_checksum_is_the_standard_one() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x8a91_36aau32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
