//! Parsers on damaged input: whatever a file holds, reading it ends with a value or an error, never with a panic, and takes no more
//! memory than the file accounts for. Inputs are valid files with bytes changed, cut out, doubled or put in.
//!
//! `SSDKD_FUZZ_CASES` sets the number of inputs per format (300 by default, a few seconds in all): docs/checkpoints.md.

use crate::launch::root;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use ssdkd::checkpoint::{Manifest, Position};
use ssdkd::config::{Data, DatasetName, load};
use ssdkd::data::{Split, source};
use ssdkd::nn::{pickle, weights};
use std::path::Path;
use tch::Tensor;

/// Memory that the inputs of one format may add to the peak of this process, in bytes; other tests run beside them.
const MEMORY: u64 = 2 << 30;

fn cases() -> u32 {
    std::env::var("SSDKD_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

/// One change to a file. Places and lengths are fractions of it, so that they fit whatever its length is by then.
#[derive(Debug, Clone)]
enum Change {
    Set(f64, u8),
    Flip(f64, u8),
    Cut(f64, f64),
    Double(f64, f64),
    Insert(f64, Vec<u8>),
    /// A large number where a length may be.
    Length(f64, u64),
}

fn change() -> impl Strategy<Value = Change> {
    let place = || 0.0..1.0f64;
    // Headers decide more than contents: half of the changes go there.
    let near = || prop_oneof![place(), 0.0..0.02f64];
    prop_oneof![
        (near(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (near(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        (near(), place()).prop_map(|(at, length)| Change::Cut(at, length * length)),
        (near(), 0.0..0.1f64).prop_map(|(at, length)| Change::Double(at, length)),
        (near(), proptest::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (near(), prop_oneof![Just(u64::MAX), Just(1 << 40), Just(0x7fff_ffff), any::<u64>()]).prop_map(|(at, n)| Change::Length(at, n)),
    ]
}

fn apply(file: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = file.to_vec();
    for change in changes {
        let place = |at: &f64| ((bytes.len() as f64 * at) as usize).min(bytes.len().saturating_sub(1));
        match change {
            _ if bytes.is_empty() => return bytes,
            Change::Set(at, byte) => {
                let at = place(at);
                bytes[at] = *byte;
            }
            Change::Flip(at, bit) => {
                let at = place(at);
                bytes[at] ^= 1 << bit;
            }
            Change::Cut(at, length) => {
                let (from, length) = (place(at), (bytes.len() as f64 * length) as usize + 1);
                bytes.drain(from..(from + length).min(bytes.len()));
            }
            Change::Double(at, length) => {
                let (from, length) = (place(at), (bytes.len() as f64 * length) as usize + 1);
                let part = bytes[from..(from + length).min(bytes.len())].to_vec();
                bytes.splice(from..from, part);
            }
            Change::Insert(at, new) => {
                let at = place(at);
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Length(at, n) => {
                let at = place(at);
                for (old, new) in bytes[at..].iter_mut().zip(n.to_le_bytes()) {
                    *old = new;
                }
            }
        }
    }
    bytes
}

/// Reads changed forms of `files`; what `read` gives does not matter, as long as it gives something.
fn survives(files: &[Vec<u8>], read: impl Fn(&[u8])) {
    let before = peak_memory();
    let mut runner = TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
    let inputs = (0..files.len(), proptest::collection::vec(change(), 1..6));
    runner
        .run(&inputs, |(which, changes)| {
            read(&apply(&files[which], &changes));
            Ok(())
        })
        .unwrap();
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < MEMORY, "reading small files took {grown} bytes");
}

/// Peak of this process's memory in bytes.
fn peak_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn idx(dims: &[u32]) -> Vec<u8> {
    let mut out = (0x0800 + dims.len() as u32).to_be_bytes().to_vec();
    dims.iter().for_each(|d| out.extend(d.to_be_bytes()));
    out.extend((0..dims.iter().product::<u32>()).map(|i| (i % 10) as u8));
    out
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// A data set of which one file is changed.
fn data_set_survives(name: DatasetName, file: &str, contents: &[Vec<u8>], others: &[(&str, Vec<u8>)]) {
    let folder = tempfile::tempdir().unwrap();
    others.iter().for_each(|(name, bytes)| std::fs::write(folder.path().join(name), bytes).unwrap());
    let set = source(name, &Data { dir: Some(folder.path().into()), allow_partial: true, ..Data::default() }).unwrap();
    survives(contents, |bytes| {
        std::fs::write(folder.path().join(file), bytes).unwrap();
        let _ = set.read(Split::Test);
    });
}

#[test]
fn idx_files() {
    let (images, labels) = (idx(&[3, 28, 28]), idx(&[3]));
    let both = [images.clone(), gzipped(&images)];
    data_set_survives(DatasetName::Mnist, "t10k-images-idx3-ubyte", &both, &[("t10k-labels-idx1-ubyte", labels.clone())]);
    data_set_survives(DatasetName::Mnist, "t10k-labels-idx1-ubyte", &[labels], &[("t10k-images-idx3-ubyte", images)]);
}

#[test]
fn cifar_files() {
    let binary: Vec<u8> = (0..2 * 3073).map(|i| if i % 3073 == 0 { 3 } else { (i % 251) as u8 }).collect();
    data_set_survives(DatasetName::Cifar10, "test_batch.bin", &[binary], &[]);
    let golden = root().join("tests/golden/pickle");
    let python = ["cifar_py2.pkl", "cifar_py3.pkl"].map(|name| std::fs::read(golden.join(name)).unwrap());
    data_set_survives(DatasetName::Cifar10, "test_batch", &python, &[]);
}

#[test]
fn mat_files() {
    let golden = root().join("tests/golden/mat");
    let all = ["packed.mat", "plain_double.mat", "other.mat"].map(|name| std::fs::read(golden.join(name)).unwrap());
    data_set_survives(DatasetName::Svhn, "test_32x32.mat", &all, &[]);
}

#[test]
fn folders_of_pictures() {
    let golden = root().join("tests/golden/folder");
    let all = ["rgb.png", "palette.png", "photo.jpg", "grey_photo.jpeg"].map(|name| std::fs::read(golden.join(name)).unwrap());
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("test/one")).unwrap();
    let described = Data { classes: 1, channels: 3, size: 16, resize: 20, mean: vec![0.5; 3], std: vec![0.5; 3], ..Data::default() };
    let set = source(DatasetName::Folder, &Data { dir: Some(folder.path().into()), ..described }).unwrap();
    // What a file is follows from its contents, not from its name.
    survives(&all, |bytes| {
        std::fs::write(folder.path().join("test/one/a.png"), bytes).unwrap();
        let _ = set.read(Split::Test);
        let _ = set.survey(Split::Test);
    });
}

#[test]
fn annotations_of_tiny_imagenet() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("val/images")).unwrap();
    let picture = image::RgbImage::from_pixel(64, 64, image::Rgb([9, 8, 7]));
    picture.save_with_format(folder.path().join("val/images/val_0.JPEG"), image::ImageFormat::Jpeg).unwrap();
    let set = source(DatasetName::TinyImagenet, &Data { dir: Some(folder.path().into()), allow_partial: true, ..Data::default() }).unwrap();
    let (wnids, lines) = (b"n02124075\nn01443537\n".to_vec(), b"val_0.JPEG\tn02124075\t0\t32\t44\t62\n".to_vec());
    for (changed, other) in [("wnids.txt", "val/val_annotations.txt"), ("val/val_annotations.txt", "wnids.txt")] {
        let of = |name: &str| if name == "wnids.txt" { wnids.clone() } else { lines.clone() };
        std::fs::write(folder.path().join(other), of(other)).unwrap();
        survives(&[of(changed)], |bytes| {
            std::fs::write(folder.path().join(changed), bytes).unwrap();
            let _ = set.read(Split::Test);
        });
    }
}

#[test]
fn pickles_and_torch_files() {
    let golden = root().join("tests/golden/pickle");
    let all: Vec<Vec<u8>> = std::fs::read_dir(golden)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "pth" || e == "pkl"))
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    assert!(all.len() > 20);
    survives(&all, |bytes| {
        let _ = pickle::read_pickle(bytes);
        let _ = pickle::read_torch_bytes(bytes).and_then(pickle::state_dict);
    });
}

#[test]
fn safetensors_files() {
    let tensors = [("a.weight", vec![4, 3]), ("a.bias", vec![4]), ("n", vec![])];
    let tensors: Vec<(String, Tensor)> = tensors.iter().map(|(key, shape)| ((*key).to_owned(), ssdkd::goldens::fill(1, shape))).collect();
    let file = weights::to_safetensors(&tensors, &[("format", "pt".into())]).unwrap();
    survives(&[file], |bytes| {
        let _ = weights::from_safetensors(bytes);
    });
}

#[test]
fn manifests() {
    let manifest = Manifest::new(Position::default(), 4, [("seed".to_owned(), "1".to_owned())].into(), "v".into(), "m".into());
    let body = serde_json::to_string_pretty(&manifest).unwrap();
    let sealed = |body: &[u8]| [body, b"\n", ssdkd::files::sha256(body).as_bytes(), b"\n"].concat();
    assert!(Manifest::parse(&sealed(body.as_bytes())).is_ok());
    // Changed as they lie, and changed by somebody who renews the checksum.
    survives(&[sealed(body.as_bytes())], |bytes| drop(Manifest::parse(bytes)));
    survives(&[body.into_bytes()], |bytes| drop(Manifest::parse(&sealed(bytes))));
}

#[test]
fn configuration_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.toml");
    let shipped = |name: &str| std::fs::read(root().join("configs").join(name)).unwrap();
    let all = [shipped("fashion_mnist/demo.toml"), shipped("cifar10/resnet34-resnet18.toml")];
    survives(&all, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(loaded) = load(std::slice::from_ref(&path), &[]) {
            let _ = ssdkd::config::check(&loaded.config, ssdkd::config::Job::Train);
        }
    });
    assert!(Path::new(&path).exists());
}
