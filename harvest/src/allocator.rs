//! The allocator of the program on Linux: jemalloc, told to give memory back soon.
//!
//! A run over a million rows should hold no more than one over thousands. The allocator of glibc keeps for each thread
//! what it freed, in areas that grow gaps; beside it, jemalloc so set holds less and is faster
//! (`scripts/bench_harvest/run memory`).

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// `malloc_conf` of `jemalloc(3)`, which is read before `main`. Two arenas are enough for a program that waits for
/// servers; pages that were freed return to the system within 10 ms.
#[expect(
    unsafe_code,
    reason = "jemalloc finds its settings by the name of a symbol"
)]
// SAFETY: the symbol is meant to be defined by the program, as a pointer to a string that ends in a zero byte.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub(crate) static MALLOC_CONF: &[u8; 45] = b"narenas:2,dirty_decay_ms:10,muzzy_decay_ms:0\0";
