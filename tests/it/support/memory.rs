//! The memory of a process.

use std::fs;

/// Returns the resident memory of a process, in bytes.
///
/// The pages of its executable file are left out, because a debug build has 13 MB more of them than
/// a release (10 MB).
pub(crate) fn resident(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("a process has memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") << 10
}
