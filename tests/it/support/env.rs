//! Environment variables that make a test longer or repeat it.

use std::env;

/// The variable that fixes every random choice of a test.
pub(crate) const SEED: &str = "REDIS_PROXY_TEST_SEED";

/// Returns the number in `variable`, if it is set and not empty.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// Returns the seed of a test with random choices: that of the environment, or a different one
/// each run. Prints it, so that a failed test shows how to repeat it.
pub(crate) fn seed() -> u64 {
    print_seed(number(SEED).unwrap_or_else(|| rand::random::<u32>().into()))
}

/// Returns the seed of a test. Its choices are the same in each run, unless the environment names
/// another seed.
pub(crate) fn seed_or(default: u64) -> u64 {
    print_seed(number(SEED).unwrap_or(default))
}

fn print_seed(seed: u64) -> u64 {
    eprintln!("{SEED}={seed}");
    seed
}
