//! Tensors of GPUs between ranks, over NCCL; bytes of the host and tensors of the CPU go over the transport below it.
//!
//! NCCL is loaded at run time through the crate `cudarc`, which looks for `libnccl.so` and never for the `libnccl.so.2` that wheels and
//! packages bring: [`found`] tells the two cases apart. Every operation goes to the stream of libtorch's own kernels, so tensors
//! need no other order, and is waited for: until it ends, errors of NCCL are polled, and the watchdog sees this rank inside it.
//!
//! Communicators do not block (`blocking = 0`): a call that is still in progress is asked again, with a limit where a peer may never
//! come. After an error the communicator is aborted and this rank reports it, which ends the job.

use super::Communicator;
use crate::device::{self, stream};
use crate::error::{Error, Result};
use crate::layout::Rank;
use cudarc::nccl::{result, sys};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use sys::{ncclDataType_t, ncclRedOp_t, ncclResult_t};
use tch::{Device, Kind, Tensor};

/// Bytes of a unique id.
pub const ID_BYTES: usize = 128;

/// How long an abort or an orderly end may take before this rank goes on without it.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What was found of NCCL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A library that has all that is needed: 10000·major + 100·minor + patch.
    Ready(i32),
    /// Only under the name `libnccl.so.2`.
    Misnamed,
    /// Not there.
    Missing,
    /// There, and of no use.
    Unfit(String),
}

impl Found {
    /// Why it cannot be used, and the way out.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Ready(_) => None,
            Self::Misnamed => {
                Some("only libnccl.so.2 is on the search path: link libnccl.so to it beside libtorch (launch/setup.sh does so for the one it installs)".into())
            }
            Self::Missing => Some(format!("not here: for a GPU launch/setup.sh installs it; a Python of your own has it from {}", package())),
            Self::Unfit(why) => {
                Some(format!("{why}: 2.28 or newer is needed, from {}", package()))
            }
        }
    }
}

/// The package that brings it for this libtorch.
fn package() -> String {
    format!("nvidia-nccl-cu{}", device::cuda_flavour().unwrap_or(13))
}

/// As people write it: 2.28.9 for 22809.
pub fn version_text(version: i32) -> String {
    format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100)
}

/// Looks for NCCL. Loads it, and needs neither a GPU nor a driver.
pub fn found() -> Found {
    // SAFETY: opens a library whose initialisers have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return if device::open("libnccl.so.2").is_ok() { Found::Misnamed } else { Found::Missing };
    }
    // A symbol that the loaded version lacks would panic at its first use.
    const NEEDED: [&[u8]; 14] = [
        b"ncclGetVersion",
        b"ncclGetUniqueId",
        b"ncclCommInitRankConfig",
        b"ncclCommGetAsyncError",
        b"ncclCommFinalize",
        b"ncclCommDestroy",
        b"ncclCommAbort",
        b"ncclGetErrorString",
        b"ncclGetLastError",
        b"ncclGroupStart",
        b"ncclGroupEnd",
        b"ncclSend",
        b"ncclRecv",
        b"ncclAllReduce",
    ];
    for symbol in NEEDED.into_iter().chain([&b"ncclBroadcast"[..], b"ncclAllGather"]) {
        // SAFETY: the library is present; the symbol is looked up, not called.
        if unsafe { sys::culib().get::<unsafe extern "C" fn()>(symbol) }.is_err() {
            return Found::Unfit(format!("it lacks {}", String::from_utf8_lossy(symbol)));
        }
    }
    match result::get_nccl_version() {
        // ncclConfig_t is that of 2.28: later versions take it, earlier ones refuse its size.
        Ok(version) if version >= 22_800 => Found::Ready(version),
        Ok(version) => Found::Unfit(format!("it is {}", version_text(version))),
        Err(error) => Found::Unfit(text_of(error.0)),
    }
}

/// A unique id, by which the ranks of one communicator find each other.
///
/// # Errors
/// NCCL is not there, or finds no network to listen on.
pub fn unique_id() -> Result<[u8; ID_BYTES]> {
    if let Some(problem) = found().problem() {
        return Err(failed("unique id", problem));
    }
    let id = result::get_uniqueid().map_err(|e| failed("unique id", text_of(e.0)))?;
    Ok(id.internal.map(|c| c as u8))
}

fn failed(operation: &'static str, problem: String) -> Error {
    Error::Comm { operation, problem: format!("NCCL: {problem}") }
}

fn text(pointer: *const c_char) -> String {
    // SAFETY: NCCL returns static NUL-terminated strings, or null.
    if pointer.is_null() { String::new() } else { unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned() }
}

fn text_of(code: ncclResult_t) -> String {
    // SAFETY: any code has a text.
    text(unsafe { sys::ncclGetErrorString(code) })
}

/// Asks until it is done, first often, then ten thousand times a second.
///
/// # Errors
/// What `ask` returns; not done within `limit`.
fn wait(limit: Option<Duration>, mut ask: impl FnMut() -> std::result::Result<bool, String>) -> std::result::Result<(), String> {
    const OFTEN: Duration = Duration::from_micros(500);
    let began = Instant::now();
    while !ask()? {
        let waited = began.elapsed();
        if limit.is_some_and(|limit| waited > limit) {
            return Err(format!("not done within {} s", waited.as_secs()));
        }
        if waited < OFTEN { std::hint::spin_loop() } else { std::thread::sleep(Duration::from_micros(100)) }
    }
    Ok(())
}

/// Does `work` on a thread of its own, and whether it ended within `limit`. One that did not is left behind.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = channel();
    let run = move || {
        work();
        let _ = done.send(());
    };
    std::thread::Builder::new().name("nccl-end".into()).spawn(run).is_ok() && wait.recv_timeout(limit).is_ok()
}

/// A communicator as an argument of a thread.
struct Handle(sys::ncclComm_t);

// SAFETY: NCCL allows an abort from any thread, and the other ends only after this one has let go of it.
unsafe impl Send for Handle {}

/// NCCL over the ranks of another transport.
pub struct NcclComm {
    /// Null once it was aborted.
    comm: std::cell::Cell<sys::ncclComm_t>,
    gpu: usize,
    control: Box<dyn Communicator>,
}

impl NcclComm {
    /// Joins the ranks of `control`, each with a GPU of its own (or see `parallel.share_gpu`). A collective.
    ///
    /// # Errors
    /// NCCL refuses (two ranks on one GPU), or a rank has not come within `limit`.
    pub fn over(
        control: Box<dyn Communicator>,
        gpu: usize,
        limit: Option<Duration>,
    ) -> std::result::Result<Self, (Box<dyn Communicator>, Error)> {
        match Self::init(&*control, gpu, limit) {
            Ok(comm) => Ok(Self { comm: std::cell::Cell::new(comm), gpu, control }),
            Err(error) => Err((control, error)),
        }
    }

    fn init(control: &dyn Communicator, gpu: usize, limit: Option<Duration>) -> Result<sys::ncclComm_t> {
        // The leader's error reaches the others as an id of zeros.
        let mine = if control.rank().0 == 0 { unique_id() } else { Ok([0; ID_BYTES]) };
        let mut ids = vec![0u8; ID_BYTES * control.size()];
        control.all_gather(mine.as_ref().unwrap_or(&[0; ID_BYTES]), &mut ids)?;
        mine?;
        if ids[..ID_BYTES].iter().all(|&b| b == 0) {
            return Err(failed("set-up", "rank 0 could not make a unique id".into()));
        }
        stream::use_gpu(gpu)?;
        let id = sys::ncclUniqueId { internal: std::array::from_fn(|i| ids[i] as c_char) };
        let mut config = config();
        let mut comm: sys::ncclComm_t = std::ptr::null_mut();
        // SAFETY: all arguments live through the call; nobody else knows this communicator.
        let code =
            unsafe { sys::ncclCommInitRankConfig(&raw mut comm, control.size() as c_int, id, control.rank().0 as c_int, &raw mut config) };
        let begun = if is_begun(code) { Ok(()) } else { Err(text_of(code)) };
        let done = begun.and_then(|()| wait(limit, || state(comm)));
        done.map_err(|problem| {
            let problem = explain(comm, problem);
            abort(comm);
            failed("set-up", problem)
        })?;
        Ok(comm)
    }

    /// Puts operations on libtorch's stream as one group, and waits until they are done. `enqueue` gets communicator and stream.
    fn group(&self, operation: &'static str, enqueue: impl FnOnce(sys::ncclComm_t, sys::cudaStream_t) -> Vec<ncclResult_t>) -> Result<()> {
        let comm = self.comm.get();
        if comm.is_null() {
            return Err(failed(operation, "the communicator was aborted".into()));
        }
        let on = stream::current(self.gpu)?.cast();
        // SAFETY: a group is opened and closed by this thread.
        let opened = unsafe { sys::ncclGroupStart() };
        let codes = enqueue(comm, on);
        // SAFETY: as above.
        let closed = unsafe { sys::ncclGroupEnd() };
        let refused = [opened].into_iter().chain(codes).chain([closed]).find(|&code| !is_begun(code));
        let outcome = match refused {
            Some(code) => Err(text_of(code)),
            // The watchdog sets the limit: it knows which ranks are still alive.
            None => wait(None, || Ok(state(comm)? && stream::is_done(self.gpu).map_err(|e| e.to_string())?)),
        };
        outcome.map_err(|problem| {
            let problem = explain(comm, problem);
            self.comm.set(std::ptr::null_mut());
            abort(comm);
            failed(operation, problem)
        })
    }

    fn is_here(&self, tensor: &Tensor) -> bool {
        tensor.device() != Device::Cpu
    }
}

/// NCCL_CONFIG_INITIALIZER of nccl.h with `blocking = 0`.
fn config() -> sys::ncclConfig_t {
    const UNSET: c_int = c_int::MIN;
    sys::ncclConfig_t {
        size: std::mem::size_of::<sys::ncclConfig_t>(),
        magic: 0xcafe_beef,
        version: 22_809,
        blocking: 0,
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: std::ptr::null(),
        splitShare: UNSET,
        trafficClass: UNSET,
        commName: std::ptr::null(),
        collnetEnable: UNSET,
        CTAPolicy: UNSET,
        shrinkShare: UNSET,
        nvlsCTAs: UNSET,
        nChannelsPerNetPeer: UNSET,
        nvlinkCentricSched: UNSET,
    }
}

fn is_begun(code: ncclResult_t) -> bool {
    matches!(code, ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress)
}

/// Whether the last call has come to its end.
///
/// # Errors
/// Something went wrong since, here or on a peer.
fn state(comm: sys::ncclComm_t) -> std::result::Result<bool, String> {
    let mut code = ncclResult_t::ncclSuccess;
    // SAFETY: a living communicator, and a variable for the answer.
    let asked = unsafe { sys::ncclCommGetAsyncError(comm, &raw mut code) };
    match (asked, code) {
        (ncclResult_t::ncclSuccess, ncclResult_t::ncclSuccess) => Ok(true),
        (ncclResult_t::ncclSuccess, ncclResult_t::ncclInProgress) => Ok(false),
        (ncclResult_t::ncclSuccess, error) | (error, _) => Err(text_of(error)),
    }
}

/// The problem with NCCL's own last words.
fn explain(comm: sys::ncclComm_t, problem: String) -> String {
    // SAFETY: null is allowed.
    let words = text(unsafe { sys::ncclGetLastError(comm) });
    if words.is_empty() { problem } else { format!("{problem} ({})", words.trim()) }
}

/// Gives a communicator up. An abort may hang itself (NCCL before 2.26.2): then the process ends with it unfinished.
fn abort(comm: sys::ncclComm_t) {
    if comm.is_null() {
        return;
    }
    let handle = Handle(comm);
    within(LAST_WORDS, move || {
        let Handle(comm) = { handle };
        // SAFETY: nobody uses the communicator any more.
        unsafe { sys::ncclCommAbort(comm) };
    });
}

impl Drop for NcclComm {
    fn drop(&mut self) {
        let comm = self.comm.get();
        if comm.is_null() || std::thread::panicking() {
            return;
        }
        // SAFETY: all operations were waited for; peers that are gone already cannot hold this rank up for long.
        unsafe {
            if is_begun(sys::ncclCommFinalize(comm)) && wait(Some(LAST_WORDS), || state(comm)).is_ok() {
                sys::ncclCommDestroy(comm);
            } else {
                abort(comm);
            }
        }
    }
}

/// Where each part begins, and how long it is, in bytes.
fn parts(counts: &[usize], width: usize) -> impl Iterator<Item = (usize, usize)> {
    counts.iter().scan(0, move |at, count| {
        let from = *at;
        *at += count * width;
        Some((from, count * width))
    })
}

fn address(tensor: &Tensor) -> *mut u8 {
    debug_assert!(tensor.is_contiguous());
    tensor.data_ptr().cast()
}

/// Everything but sums travels as bytes.
const BYTE: ncclDataType_t = ncclDataType_t::ncclUint8;

impl Communicator for NcclComm {
    fn rank(&self) -> Rank {
        self.control.rank()
    }

    fn size(&self) -> usize {
        self.control.size()
    }

    fn name(&self) -> &'static str {
        "NCCL, set up over MPI"
    }

    fn barrier(&self) -> Result<()> {
        self.control.barrier()
    }

    fn all_gather(&self, send: &[u8], receive: &mut [u8]) -> Result<()> {
        self.control.all_gather(send, receive)
    }

    fn all_to_all(&self, send: &Tensor, send_counts: &[usize], receive: &Tensor, receive_counts: &[usize]) -> Result<()> {
        if !self.is_here(send) {
            return self.control.all_to_all(send, send_counts, receive, receive_counts);
        }
        let (from, to, width) = (address(send), address(receive), send.kind().elt_size_in_bytes());
        self.group("all-to-all", |comm, stream| {
            let both = parts(send_counts, width).zip(parts(receive_counts, width)).enumerate();
            both.flat_map(|(peer, ((from_at, sent), (to_at, received)))| {
                // SAFETY: parts lie inside tensors that outlive the call, which waits for the end of the group.
                unsafe {
                    [
                        (sent > 0)
                            .then(|| sys::ncclSend(from.wrapping_add(from_at) as *const c_void, sent, BYTE, peer as c_int, comm, stream)),
                        (received > 0).then(|| sys::ncclRecv(to.wrapping_add(to_at).cast(), received, BYTE, peer as c_int, comm, stream)),
                    ]
                }
            })
            .flatten()
            .collect()
        })
    }

    fn all_gather_parts(&self, part: &Tensor, whole: &Tensor, counts: &[usize]) -> Result<()> {
        if !self.is_here(whole) {
            return self.control.all_gather_parts(part, whole, counts);
        }
        let (from, to, width) = (address(part), address(whole), whole.kind().elt_size_in_bytes());
        self.group("all-gather", |comm, stream| {
            // SAFETY: as above.
            unsafe {
                if counts.iter().all(|n| *n == counts[0]) {
                    return vec![sys::ncclAllGather(from as *const c_void, to.cast(), counts[0] * width, BYTE, comm, stream)];
                }
                let roots = parts(counts, width).enumerate().filter(|(_, (_, bytes))| *bytes > 0);
                let one = |(root, (at, bytes)): (usize, (usize, usize))| {
                    sys::ncclBroadcast(from as *const c_void, to.wrapping_add(at).cast(), bytes, BYTE, root as c_int, comm, stream)
                };
                roots.map(one).collect()
            }
        })
    }

    fn all_reduce_native(&self, tensor: &Tensor) -> Result<()> {
        if !self.is_here(tensor) {
            return self.control.all_reduce_native(tensor);
        }
        debug_assert_eq!(tensor.kind(), Kind::Float);
        let (at, count, float, sum) = (address(tensor), tensor.numel(), ncclDataType_t::ncclFloat32, ncclRedOp_t::ncclSum);
        self.group("all-reduce", |comm, stream| {
            // In buckets, so that the next one is on its way while the last one is added.
            // SAFETY: as above.
            let bucket = |from: usize| unsafe {
                let place = at.wrapping_add(4 * from);
                sys::ncclAllReduce(place as *const c_void, place.cast(), super::BUCKET.min(count - from), float, sum, comm, stream)
            };
            (0..count).step_by(super::BUCKET).map(bucket).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes and offsets that nccl.h of 2.28.9 has: `ncclConfig_t` is 8 + 4·5 + … with two pointers.
    #[test]
    fn the_configuration_is_the_headers() {
        use std::mem::offset_of;
        assert_eq!(std::mem::size_of::<sys::ncclUniqueId>(), ID_BYTES);
        let offsets = [
            offset_of!(sys::ncclConfig_t, magic),
            offset_of!(sys::ncclConfig_t, blocking),
            offset_of!(sys::ncclConfig_t, netName),
            offset_of!(sys::ncclConfig_t, splitShare),
            offset_of!(sys::ncclConfig_t, commName),
            offset_of!(sys::ncclConfig_t, nvlinkCentricSched),
        ];
        assert_eq!(offsets, [8, 16, 32, 40, 48, 76]);
        assert_eq!((std::mem::size_of::<sys::ncclConfig_t>(), config().size), (80, 80));
        assert_eq!((config().blocking, config().version), (0, 22_809));
    }

    /// The signatures of nccl.h 2.28.9, by hand: a binding that differs does not compile.
    #[test]
    fn calls_have_the_headers_signatures() {
        type Comm = sys::ncclComm_t;
        type Stream = sys::cudaStream_t;
        let _: unsafe fn(*mut c_int) -> ncclResult_t = sys::ncclGetVersion;
        let _: unsafe fn(*mut sys::ncclUniqueId) -> ncclResult_t = sys::ncclGetUniqueId;
        let _: unsafe fn(*mut Comm, c_int, sys::ncclUniqueId, c_int, *mut sys::ncclConfig_t) -> ncclResult_t = sys::ncclCommInitRankConfig;
        let _: unsafe fn(Comm, *mut ncclResult_t) -> ncclResult_t = sys::ncclCommGetAsyncError;
        let _: [unsafe fn(Comm) -> ncclResult_t; 3] = [sys::ncclCommFinalize, sys::ncclCommDestroy, sys::ncclCommAbort];
        let _: unsafe fn(Comm) -> *const c_char = sys::ncclGetLastError;
        let _: unsafe fn(*const c_void, usize, ncclDataType_t, c_int, Comm, Stream) -> ncclResult_t = sys::ncclSend;
        let _: unsafe fn(*mut c_void, usize, ncclDataType_t, c_int, Comm, Stream) -> ncclResult_t = sys::ncclRecv;
        let _: unsafe fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, Comm, Stream) -> ncclResult_t = sys::ncclAllReduce;
        let _: unsafe fn(*const c_void, *mut c_void, usize, ncclDataType_t, Comm, Stream) -> ncclResult_t = sys::ncclAllGather;
        let _: unsafe fn(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, Comm, Stream) -> ncclResult_t = sys::ncclBroadcast;
        let numbers = [ncclDataType_t::ncclUint8 as u32, ncclDataType_t::ncclFloat32 as u32, ncclRedOp_t::ncclSum as u32];
        assert_eq!((numbers, ncclResult_t::ncclInProgress as u32), ([1, 7, 0], 7));
    }

    #[test]
    fn a_peer_that_does_not_come_is_not_waited_for_for_ever() {
        let limit = Duration::from_millis(20);
        assert!(wait(Some(limit), || Ok(false)).unwrap_err().starts_with("not done within"));
        let mut asked = 0;
        let third = || {
            asked += 1;
            Ok(asked == 3)
        };
        wait(Some(limit), third).unwrap();
        assert_eq!(wait(None, || Err("remote process exited".into())), Err("remote process exited".into()));
    }

    #[test]
    fn an_abort_that_hangs_is_left_behind() {
        assert!(within(Duration::from_secs(10), || {}));
        assert!(!within(Duration::from_millis(20), || std::thread::sleep(Duration::from_secs(3))));
    }

    #[test]
    fn parts_follow_each_other() {
        assert_eq!(parts(&[2, 0, 3], 4).collect::<Vec<_>>(), [(0, 8), (8, 0), (8, 12)]);
    }

    /// Needs no GPU; `libnccl.so` on the search path.
    #[test]
    fn every_unique_id_is_another() {
        if let Some(problem) = found().problem() {
            println!("skip: NCCL is {problem}");
            return;
        }
        let [a, b] = [(); 2].map(|()| unique_id().unwrap());
        assert!(a != b && a != [0; ID_BYTES]);
    }

    /// The control transport is handed back, and so the launch can go on without NCCL.
    #[test]
    fn without_a_gpu_there_is_no_communicator() {
        if crate::device::gpu_count() > 0 {
            println!("skip: this machine has a GPU");
            return;
        }
        let (control, error) = NcclComm::over(Box::new(super::super::Solo), 0, Some(Duration::from_secs(1))).err().unwrap();
        assert!(control.size() == 1 && !error.to_string().is_empty());
    }

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(version_text(22_809), "2.28.9");
    }
}
