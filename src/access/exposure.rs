//! Whether strangers can reach a listener, and what is between them and Redis then.

use std::net::IpAddr;

/// What a listener does about strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthRequirement {
    /// It asks each for something that only some have.
    Enforced,
    /// Nothing, as it was told to by `allow_unprotected`.
    Waived,
    /// Nothing, and nobody has said that this is meant. With what could be asked for.
    None(&'static str),
}

/// A listener that strangers can reach and that asks them for nothing.
#[derive(Debug, thiserror::Error)]
#[error(
    "{section}.allow_unprotected: listener {address} is reachable from other hosts without authentication; \
     set {remedy}a loopback address in {section}.listen, or {section}.allow_unprotected = true"
)]
pub struct UnprotectedListener {
    section: &'static str,
    address: String,
    remedy: &'static str,
}

impl AuthRequirement {
    /// Holds it against the address that the listener of this section has.
    ///
    /// # Errors
    /// Strangers can reach it, and nothing is done about them.
    pub fn check(
        self,
        section: &'static str,
        address: IpAddr,
        listen: &str,
    ) -> Result<(), UnprotectedListener> {
        match self {
            Self::None(remedy) if is_exposed(address) => {
                Err(UnprotectedListener { section, address: listen.to_owned(), remedy })
            }
            _ => Ok(()),
        }
    }
}

impl UnprotectedListener {
    /// What is wrong, for whoever names the key himself.
    pub fn message(&self) -> String {
        let whole = self.to_string();
        whole.split_once(": ").map_or(whole.clone(), |(_, message)| message.to_owned())
    }
}

/// Whether anybody but this machine can reach this address.
pub fn is_exposed(address: IpAddr) -> bool {
    !address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_unexposed() {
        for (address, expected) in [
            ("127.0.0.1", false),
            ("127.8.9.1", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("0.0.0.0", true),
            ("::", true),
            ("::ffff:0.0.0.0", true),
            ("10.0.0.1", true),
            ("169.254.1.1", true),
            ("fe80::1", true),
            ("::ffff:10.0.0.1", true),
        ] {
            assert_eq!(is_exposed(address.parse().unwrap()), expected, "{address}");
        }
    }
}
