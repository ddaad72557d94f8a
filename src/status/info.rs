//! The section `# redis_proxy` of `INFO`, for Redis clients.

use std::fmt::Write as _;

use super::history::ratio;
use crate::proxy::Proxy;

/// Returns the section, with a line for each field. The names of the fields differ from Redis's
/// own, because clients put the fields of all sections into one table.
pub fn info_section(proxy: &Proxy) -> String {
    let statistics = proxy.statistics();
    let reads = proxy.read_totals();
    let counts = [
        ("hits", reads.from_memory),
        ("misses", reads.misses()),
        ("errors", reads.errors),
        ("entries", statistics.entries),
        ("replies", statistics.replies.entries),
        ("memory_bytes", statistics.memory.bytes),
        ("max_memory_bytes", statistics.memory.max),
    ];
    let mut section =
        format!("# redis_proxy\r\nredis_proxy_version:{}\r\n", env!("CARGO_PKG_VERSION"));
    for (name, count) in counts {
        _ = write!(section, "redis_proxy_{name}:{count}\r\n");
    }
    let ratio = ratio(reads.from_memory, reads.all).unwrap_or_default();
    let coherence = statistics.coherence.name();
    _ = write!(
        section,
        "redis_proxy_hit_ratio:{ratio:.4}\r\nredis_proxy_coherence:{coherence}\r\n"
    );
    section
}
