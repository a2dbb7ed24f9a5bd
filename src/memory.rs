//! Memory that is freed and asked for again at once, as every layer of every step does.

/// Keeps what is freed for the next that asks: blocks up to 32 MiB, the largest that glibc's heap takes, come from the heap, and its top
/// is not given back. Otherwise the kernel clears the same pages anew in every layer (a tenth of an inversion step on two cores).
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets numbers of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TOP_PAD, 64 << 20);
    }
}
