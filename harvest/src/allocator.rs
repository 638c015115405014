//! Settings of the system's allocator.

/// Has the allocator of glibc give memory back as a long run goes on.
///
/// Left alone, it raises the sizes from which on blocks come from the system, and return to it, to whatever was freed
/// before (`M_MMAP_THRESHOLD` of `mallopt(3)`): after the first shard each thread keeps megabytes that nobody uses.
/// Values once set stay. It also has an area for every thread, up to eight for each core, each with gaps of its own; two
/// are enough for a program that waits for servers. Elsewhere this does nothing.
pub(crate) fn keep_small() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::keep_small();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::ffi::c_int;

    /// From `malloc.h`, with the values that glibc starts with.
    const M_TRIM_THRESHOLD: c_int = -1;
    const M_MMAP_THRESHOLD: c_int = -3;
    const M_ARENA_MAX: c_int = -8;
    const THRESHOLD_BYTES: c_int = 128 << 10;
    const NUM_ARENAS: c_int = 2;

    #[expect(unsafe_code, reason = "the C library has no other interface")]
    unsafe extern "C" {
        safe fn mallopt(parameter: c_int, value: c_int) -> c_int;
    }

    pub(super) fn keep_small() {
        // What is refused leaves the allocator as it was.
        mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES);
        mallopt(M_TRIM_THRESHOLD, THRESHOLD_BYTES);
        mallopt(M_ARENA_MAX, NUM_ARENAS);
    }
}
