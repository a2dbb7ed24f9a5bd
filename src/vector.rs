//! Loops compiled for more than one instruction set.

/// Defines a function compiled twice, for the vectors that every CPU of the target has and for AVX2, and picks at each call.
///
/// The body is plain Rust: integers, and f64 operations that IEEE 754 rounds in one way, never fused. So both give the same
/// bits, and any CPU can run it. What the body calls must be `#[inline(always)]`, else it is compiled for the first set only.
macro_rules! vectorised {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block) => {
        $(#[$attribute])*
        $visibility fn $name($($argument: $kind),*) {
            #[inline(always)]
            fn body($($argument: $kind),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
                fn with_avx2($($argument: $kind),*) {
                    body($($argument),*)
                }
                use std::arch::is_x86_feature_detected as has;
                if has!("avx2") && has!("bmi1") && has!("bmi2") && has!("popcnt") {
                    // SAFETY: this CPU has all of them.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            body($($argument),*)
        }
    };
}
pub(crate) use vectorised;

/// Asks for the cache lines of `value`, where the CPU can be asked.
#[inline(always)]
pub(crate) fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of::<T>()).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: prefetching is a hint and reads nothing; SSE belongs to every x86-64 CPU.
        unsafe { _mm_prefetch(std::ptr::from_ref(value).cast::<i8>().wrapping_add(line), _MM_HINT_T0) }
    }
}

/// `count` default values, in large pages where the system has them: random reads of much memory then find their pages sooner.
pub(crate) fn in_large_pages<T: Clone + Default>(count: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(count);
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 1 << 21;
        let range = values.spare_capacity_mut().as_mut_ptr_range();
        let (start, end) = (range.start.addr().next_multiple_of(PAGE), range.end.addr() & !(PAGE - 1));
        if start < end {
            // SAFETY: whole pages of memory that is ours; the advice leaves contents alone. It may be refused: it is only advice.
            unsafe { libc::madvise(range.start.with_addr(start).cast(), end - start, libc::MADV_HUGEPAGE) };
        }
    }
    values.resize(count, T::default());
    values
}
