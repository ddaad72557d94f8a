//! Who is let in: nobody by accident, nobody without what is asked for, and nobody to keys he may not read.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it should do"
)]

mod allowlist;
mod exposure;
mod rejections;
mod tokens;
