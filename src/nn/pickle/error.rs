//! Why a file could not be read.

use super::MAX_DEPTH;

/// Why a file could not be read. The texts are for the person who named the file; they leave the path to the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// The operating system could not read the file.
    #[error("cannot read the file: {0}")]
    Io(String),

    /// The file stops before its content does.
    #[error("the file is truncated: {0}; download or copy it again")]
    Truncated(String),

    /// Another format than the function reads. Holds what the first bytes look like.
    #[error("this is not the kind of file needed here: it looks like {0}")]
    NotAPickle(String),

    /// A pickle that `torch.save` did not write, or a zip archive without `data.pkl`.
    #[error("not written by torch.save: {0}")]
    NotTorch(String),

    /// An archive of `torch.jit.save`.
    #[error(
        "this is a TorchScript program, not a state_dict; as a teacher, take it with teacher.model = \"torchscript\"; or in Python, \
         load it with torch.jit.load and write its weights with torch.save(model.state_dict(), PATH)"
    )]
    TorchScript,

    /// An archive of `torch.export.save`.
    #[error(
        "this is a program of torch.export; take the module that it was exported from: its weights by torch.save(module.state_dict(), PATH), \
         or all of it as TorchScript (docs/teachers.md)"
    )]
    Exported,

    /// Another file where a TorchScript program is needed. Holds what it looks like.
    #[error("this is no TorchScript program: it looks like {0}")]
    NotTorchScript(String),

    /// The content contradicts itself or the format.
    #[error("the file is damaged: {0}")]
    Damaged(String),

    /// A pickle feature that cannot occur in weight files, named.
    #[error("the file uses {0}, which is not supported")]
    Unsupported(String),

    /// A tensor of an element type this reader does not have, named as PyTorch names it.
    #[error("the file holds a tensor of type {0}, which is not supported")]
    UnsupportedDtype(String),

    /// An entry of the state dict that is a tensor in PyTorch but no dense one (sparse, quantized, …).
    #[error("tensor `{key}` is made by `{class}`; only dense tensors are supported")]
    UnsupportedTensor {
        /// Key in the state dict.
        key: String,
        /// The callable that would make it.
        class: String,
    },

    /// Written on a big-endian machine.
    #[error("the file was written on a big-endian machine, which is not supported")]
    BigEndian,

    /// A tensor refers to a storage that is not in the file.
    #[error("the file is damaged: a tensor refers to storage `{0}`, which is not in the file")]
    MissingStorage(String),

    /// A tensor reaches beyond the end of its storage.
    #[error("the file is damaged: a tensor of shape {shape:?} reaches beyond the {stored} bytes of its storage `{storage}`")]
    OutOfStorage {
        /// Name of the storage.
        storage: String,
        /// Shape of the tensor.
        shape: Vec<usize>,
        /// Bytes the storage has.
        stored: usize,
    },

    /// Reading on would take memory out of proportion to the file.
    #[error("{0} would take far more memory than a file of this size can hold; refused")]
    TooLarge(&'static str),

    /// Nested more than [`MAX_DEPTH`] levels.
    #[error("the content is nested more than {MAX_DEPTH} levels deep; refused")]
    TooDeep,

    /// A whole `nn.Module` was pickled.
    #[error(
        "the file holds a whole pickled model of class `{class}`, which needs the Python code that wrote it; in that code, run \
         torch.save(model.state_dict(), PATH) and use the new file"
    )]
    WholeModule {
        /// `module.name` of the class.
        class: String,
    },

    /// Some other Python object where a state dict was expected.
    #[error(
        "the file holds an object made by calling `{class}`, not a state dict (nothing in the file was run); if you trust the file \
         and have its Python code, run torch.save(model.state_dict(), PATH) there and use the new file"
    )]
    Foreign {
        /// `module.name` of the callable.
        class: String,
    },

    /// No tensors where a state dict was expected.
    #[error("no state dict found: {0}")]
    NoStateDict(String),

    /// Two tensors have the same name.
    #[error("the state dict holds `{0}` twice")]
    DuplicateKey(String),
}
