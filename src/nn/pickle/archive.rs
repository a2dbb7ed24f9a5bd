//! The files around pickles: zip archives, the older PyTorch format, and what a file looks like that is neither.

use super::builder::{Storages, build};
use super::machine::{op, unpickle};
use super::*;

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

/// The file NAME that `torch.jit.save(…, _extra_files={NAME: …})` packed into a TorchScript program; none without it.
///
/// # Errors
///
/// Not a TorchScript program (saying what it looks like), truncated or damaged. Never panics, whatever the bytes.
pub fn read_extra(bytes: &[u8], name: &str) -> Result<Option<Vec<u8>>> {
    if !is_zip(bytes) {
        let other = signature(bytes).map_or_else(|| describe(bytes), str::to_owned);
        return Err(PickleError::NotTorchScript(other));
    }
    let mut archive = open_zip(bytes)?;
    match archive_root(&archive) {
        Err(PickleError::TorchScript) => {}
        Ok(_) => return Err(PickleError::NotTorchScript("a file of torch.save, with a state_dict or a pickled object".into())),
        Err(other) => return Err(other),
    }
    let wanted = format!("/extra/{name}");
    let Some(index) =
        (0..archive.len()).find(|&i| archive.name_for_index(i).is_some_and(|entry| entry.is_ok_and(|entry| entry.ends_with(&wanted))))
    else {
        return Ok(None);
    };
    Ok(Some(zip_entry(&mut archive, index, bytes, &mut Budget::for_file(bytes.len()))?.into_owned()))
}

/// Whether this looks like an ONNX model: a protobuf message that starts with its version and its producer.
pub fn is_onnx(bytes: &[u8]) -> bool {
    matches!(bytes, [0x08, 1..=0x7f, 0x12, ..])
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
    let mut archive = open_zip(bytes)?;
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

fn open_zip(bytes: &[u8]) -> Result<Archive<'_>> {
    ZipArchive::new(Cursor::new(bytes)).map_err(|error| match error {
        _ if is_exported(bytes) => PickleError::Exported,
        ZipError::InvalidArchive(problem) => {
            PickleError::Truncated(format!("it starts as a zip archive but has no whole directory ({problem})"))
        }
        other => PickleError::Damaged(other.to_string()),
    })
}

/// Whether an archive is one of `torch.export.save`: it says so in an entry of this name.
fn is_exported(bytes: &[u8]) -> bool {
    const ENTRY: &[u8] = b"/archive_format";
    bytes.windows(ENTRY.len()).any(|part| part == ENTRY)
}

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
        None if names.iter().any(|name| name.ends_with("/archive_format")) => Err(PickleError::Exported),
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
        let checked = std::io::copy(&mut entry, &mut std::io::sink()).map_err(unreadable)?;
        let start = entry.data_start().and_then(|start| usize::try_from(start).ok()).filter(|_| checked == size as u64);
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
    let binary = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    let is_text = |head: &[u8]| {
        let characters = std::str::from_utf8(head).map_or_else(|error| error.error_len().is_none(), |_| true);
        characters && !head.iter().any(binary)
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
pub(super) fn shortened(name: &str) -> String {
    match name.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", name.get(..end).unwrap_or_default()),
        None => name.to_owned(),
    }
}
